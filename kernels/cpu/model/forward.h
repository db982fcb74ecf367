// One forward pass over the segments of a batch: run by every member of the thread team at once.
#pragma once

#include <atomic>
#include <vector>

#include "model/model.h"

namespace aegis {

// A block of consecutive queries of one path; every KV head is a task of its own.
struct QueryBlock {
  int node;  // of the last one
  int count;
  int row;   // first row of q and of the output
  int from;  // the batch's first token whose keys it reads; the last is its own last one
};

// Where a segment's tokens are: in `node`, from token `first` on.
struct Place {
  int node, first;
};

// A node that a batch makes longer: its tokens before, and its depth past its last token after.
struct Grown {
  int node, before;
  int64_t end;
};

// Scratch of a model, kept between passes.
struct Model::Workspace {
  Buffer<float> x, x_slots, q, kv, attention, branch, mlp, a_scale, a_scale_slots, low_out, cos, sin;
  Buffer<std::byte> a, a_slots;
  Buffer<uint16_t> q_heads;
  struct PerThread {
    Buffer<float> scores, row;
    Buffer<uint16_t> probs, keys;
    Buffer<int8_t> panel;
    Buffer<KvPart> parts;
    Buffer<QueryEnd> ends;
  };
  std::vector<PerThread> threads;
  std::vector<QueryBlock> blocks, slot_blocks;
  std::vector<Place> places;                 // of each segment
  std::vector<int> segment_of;               // of each token
  std::vector<int> from;                     // of each segment: the first token of it and of what it hangs from
  Buffer<std::atomic<int>> taken;            // of each task of attention, those of slots last: layers that took it
  std::vector<int32_t> low_of, slot_low_of;  // of each token and slot: its row of second digits, or -1
  std::vector<int64_t> ends;                 // of each new node: its depth past its last token
  std::vector<Grown> grown;
  std::vector<int32_t> part_offsets, part_slots;  // of the part of a batch that is computed
  int positions = 0;                              // rows of each table of cos and sin that are filled
};

class Forward {
 public:
  // Adds the nodes and prepares all memory: operator() allocates nothing and does not throw.
  Forward(Model& model, Tree& tree, const Batch& batch, float* logits, float* hidden);
  void operator()(int member);

 private:
  struct Rows {  // what the layer's operators work on: all tokens, or the slots alone in the last layer
    float* x;
    int count;
    std::byte* a;
    float* a_scale;
    const std::vector<int32_t>& low_of;
    const std::vector<QueryBlock>* blocks;
  };

  // What a member has of a stage. Few rows: all of them, with the others beside it (rows are split where a stage goes
  // by row, output channels where it is a GEMM, and a barrier stands between). Many rows: a run of them alone, through
  // every stage up to the next that needs other rows, so that they stay in its cache and nobody waits; what is in
  // between (prepared inputs, q, k and v, the MLP's rows) is kept from scratch row `at` on, the same for each run.
  struct Part {
    int first, last, at;
    bool alone;
  };

  void embed(int member);
  void layer(int member, int index);
  template <class F>
  void in_parts(int member, int count, const F& f);
  void project(int member, int index, const Rows& rows, const Part& part, bool queries, bool keys);
  void transform(int member, int index, const Rows& rows, const Part& part);
  void prepare(int member, const Rows& rows, const Part& part, const Linear& linear, const float* x, int width,
               const std::vector<float>* norm, int hadamard);
  Inputs inputs(const Rows& rows, const Part& part) const;
  float* low_out(const Inputs& in) const;
  const void* start_of(const Linear* linear, int member, const Part& part) const;
  void gemm(int member, const Part& part, const Linear& linear, const Rows& rows, float* out, Epilogue epilogue,
            const Linear* next);
  void project_qkv(int member, const Layer& layer, const Rows& rows, const Part& part, bool queries, bool keys);
  void rotate_q(int member, int index, const Rows& rows, const Part& part);
  void store_kv(int member, int index, const Part& part);
  void store_keys(int member, int index, int head, const Part& part, int token, int count);
  void store_values(int member, int index, int head, const Part& part, int token, int count);
  void add_normed(int member, const Part& part, const float* branch, const std::vector<float>& norm, float* x);
  void next_weights(int member, int index, Fetch (&next)[2]) const;
  bool take(int index, size_t task);
  void attend(int member, int index, const Rows& rows, uint32_t arrived);
  void attend(int member, int index, const Rows& rows, const QueryBlock& block, int head, Fetch* fetch);
  void head(int member);

  void add_blocks();
  bool alone(int count) const;
  int token_of(const Rows& rows, int row) const;
  Place place(int token) const;
  int position(int token) const;
  size_t rotary(int layer, int position) const;
  void split(int count, int member, int& begin, int& end) const;
  void rows_of(int member, const Part& part, int& begin, int& end) const;
  void columns_of(int member, const Part& part, int half_panels, int& begin, int& end) const;
  // What is prepared of a part: bf16, or int8 and second digits, at most as many; and the scales.
  std::byte* input_of(const Rows& rows, const Part& part) const {
    return rows.a + 2 * static_cast<size_t>(part.at) * static_cast<size_t>(widest_input_);
  }
  float* scale_of(const Rows& rows, const Part& part) const { return rows.a_scale + 2 * static_cast<size_t>(part.at); }
  void sync(const Part& part) const {
    if (!part.alone) m_.pool_.barrier();
  }

  Model& m_;
  const Config& c_;
  const Kernels& k_;
  Tree& tree_;
  const Batch batch_;
  Model::Workspace& w_;
  float* logits_;
  float* hidden_;
  // Rows whose int8 inputs have two digits (16 bits in effect): the slots, whose own rounding errors the head reads
  // off, and every row of a pass without slots, a policy's, to which all later tokens attend. These few rows made most
  // of the distance to the fp32 parent: margins move by 3 % of their deviation with two digits, by 10 % with one.
  int fine_;
  int widest_input_, widest_output_;  // of a matrix of a layer
};

}  // namespace aegis

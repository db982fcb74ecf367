// A decoder's weights and the one thing it does: extend a token tree by a batch of segments.
//
// Thread-safety: weights are set by one thread; afterwards extend() may be called from many (calls queue up
// for the thread team; each uses all of it). Every size is checked here, before a kernel sees it.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/linear.h"
#include "runtime/thread_pool.h"
#include "runtime/tree.h"

namespace aegis {

struct Layer {
  Linear q, kv, o, gate_up, down;
  std::vector<float> input_norm, post_norm;             // empty: folded into the next matrix
  std::vector<float> q_norm, k_norm;                    // [head_dim], where the config has qk_norm
  std::vector<float> attention_out_norm, mlp_out_norm;  // where it has out_norms
};

// Segments packed one after the other: segment s holds ids[offsets[s] .. offsets[s + 1]).
struct Batch {
  const int32_t* ids;
  const int32_t* offsets;  // [segments + 1]
  const int32_t* parents;  // [segments]: a node of the tree, or tree.size() + the number of an earlier new node
  int segments;
  const int32_t* slots;  // [slot_count], increasing indices into ids
  int slot_count;
  bool fine = false;  // all rows with two digits: a policy's root, to which every later token attends
  // [segments] or null. kept >= 0: the segment adds no node; its tokens follow the first `kept` ones of its parent, in
  // it, and replace the others. room: tokens that a new node may grow to, where that is more than it has.
  const int32_t* kept = nullptr;
  const int32_t* room = nullptr;
  bool grows(int s) const { return kept != nullptr && kept[s] >= 0; }
  int tokens() const { return offsets[segments]; }
};

class Model {
 public:
  Model(Config config, int threads);

  const Config& config() const { return config_; }
  const Kernels& kernels() const { return kernels_; }
  int threads() const { return pool_.threads(); }

  // Weights. layer.linear() says which of "q", "kv", "o", "gate_up", "down"; throws std::invalid_argument.
  Linear& linear(int layer, const std::string& name);
  Layer& layer(int i) { return layers_.at(static_cast<size_t>(i)); }
  std::vector<float>& final_norm() { return final_norm_; }
  // bf16 [vocab, hidden]; stays the caller's.
  void set_embedding(const uint16_t* rows) { embedding_ = rows; }
  // f32 [rows, hidden] and [rows].
  void set_head(const float* weight, const float* bias);
  // Throws std::invalid_argument naming the first weight that is missing.
  void check_complete() const;

  // Adds the batch's segments as nodes, or to nodes. logits f32 [slot_count, rows]; hidden f32 [slot_count,
  // config.hidden] (after the final norm) or null. Throws std::invalid_argument on a bad batch and std::length_error
  // past the context; the tree is unchanged then. Where memory runs out, too, but for what grown nodes held past
  // `kept`.
  void extend(Tree& tree, const Batch& batch, float* logits, float* hidden);
  // Keeps the tree's first `nodes` nodes; waits for a pass that is under way.
  void truncate(Tree& tree, int nodes);

 private:
  friend class Forward;
  void check(const Tree& tree, const Batch& batch);
  int64_t check_grows(const Tree& tree, const Batch& batch, int segment) const;
  Batch next_part(const Batch& batch, int first, int slot);

  Config config_;
  const Kernels& kernels_;
  HugePages pages_;  // of the layers' matrices
  std::vector<Layer> layers_;
  std::vector<float> final_norm_, head_, head_bias_;
  const uint16_t* embedding_ = nullptr;

  struct Workspace;
  std::mutex mutex_;  // guards all below: one extend at a time
  ThreadPool pool_;
  std::shared_ptr<Workspace> workspace_;
};

}  // namespace aegis

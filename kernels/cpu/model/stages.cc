// What the stages of a forward pass do; their order is in forward.cc.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/forward.h"

namespace aegis {
namespace {

size_t sz(int n) { return static_cast<size_t>(n); }

}  // namespace

int Forward::token_of(const Rows& rows, int row) const { return rows.blocks == &w_.blocks ? row : batch_.slots[row]; }

Place Forward::place(int token) const {
  const int s = w_.segment_of[sz(token)];
  return {w_.places[sz(s)].node, w_.places[sz(s)].first + token - batch_.offsets[s]};
}

int Forward::position(int token) const {
  const Place at = place(token);
  return tree_.node(at.node).start + at.first;
}

// Where the cos and sin of a position begin.
size_t Forward::rotary(int layer, int position) const {
  return (sz(c_.rope(layer)) * sz(w_.positions) + sz(position)) * sz(c_.head_dim / 2);
}

void Forward::split(int count, int member, int& begin, int& end) const {
  const int64_t threads = m_.threads();
  begin = static_cast<int>(int64_t{count} * member / threads);
  end = static_cast<int>(int64_t{count} * (member + 1) / threads);
}

// The rows of a part that this member works on where a stage goes by row.
void Forward::rows_of(int member, const Part& part, int& begin, int& end) const {
  split(part.alone ? 0 : part.last - part.first, member, begin, end);
  begin = part.alone ? part.first : part.first + begin;
  end = part.alone ? part.last : part.first + end;
}

// Its share of a matrix's half panels.
void Forward::columns_of(int member, const Part& part, int half_panels, int& begin, int& end) const {
  split(half_panels, member, begin, end);
  if (part.alone) begin = 0, end = half_panels;
}

void Forward::embed(int member) {
  int begin, end;
  split(batch_.tokens(), member, begin, end);
  for (int t = begin; t < end; ++t)
    k_.from_bf16(m_.embedding_ + sz(batch_.ids[t]) * sz(c_.hidden), c_.hidden, w_.x.data() + sz(t) * sz(c_.hidden));
}

void Forward::add_normed(int member, const Part& part, const float* branch, const std::vector<float>& norm, float* x) {
  int begin, end;
  rows_of(member, part, begin, end);
  for (int r = begin - part.first; r < end - part.first; ++r)
    k_.norm_add(branch + sz(r) * sz(c_.hidden), norm.data(), c_.hidden, c_.norm_eps, x + sz(r) * sz(c_.hidden));
}

// Rows of fp32 (x: the part's first) -> what `linear` multiplies: int8 and a scale a row, or bf16. norm: RMSNorm first
// (empty: weights of one); hadamard: then a transform in blocks.
void Forward::prepare(int member, const Rows& rows, const Part& part, const Linear& linear, const float* x, int width,
                      const std::vector<float>* norm, int hadamard) {
  int begin, end;
  rows_of(member, part, begin, end);
  const Inputs in = inputs(rows, part);
  std::byte* a = input_of(rows, part);
  float *low_scale = scale_of(rows, part), *a_scale = low_scale + in.low_rows;
  const float* weight = norm == nullptr || norm->empty() ? nullptr : norm->data();
  float* scratch = w_.threads[sz(member)].row.data();
  for (int r = begin - part.first; r < end - part.first; ++r) {
    const float* row = x + sz(r) * sz(width);
    if (norm != nullptr && hadamard != 0) {
      k_.norm(row, weight, width, c_.norm_eps, scratch);
      row = scratch;  // the transform works in place
    }
    if (linear.int8_input()) {
      auto* digits = reinterpret_cast<uint8_t*>(a);
      auto* out = digits + sz(in.low_rows + r) * sz(width);
      const int fine = in.low_of[r] < 0 ? -1 : in.low_of[r] - in.low_first;
      auto* low = fine < 0 ? nullptr : digits + sz(fine) * sz(width);
      if (hadamard != 0)
        k_.hadamard_int8(row, width, hadamard, scratch, out, a_scale + r, low);
      else if (norm != nullptr)
        k_.norm_int8(row, weight, width, c_.norm_eps, out, a_scale + r, low);
      else
        k_.quantise(row, width, out, a_scale + r, low);
      if (fine >= 0) low_scale[fine] = a_scale[r] / kLowSteps;
    } else {
      if (hadamard != 0) {
        k_.hadamard(row, width, hadamard, scratch);
        row = scratch;
      }
      auto* out = reinterpret_cast<uint16_t*>(a) + sz(r) * sz(width);
      if (norm != nullptr && hadamard == 0)
        k_.norm_bf16(row, weight, width, c_.norm_eps, out);
      else
        k_.to_bf16(row, width, out);
    }
  }
}

// Where the prepared rows of a part stand. A member that has its part to itself may be at a wider matrix than the
// others: its place is counted in rows of the widest.
Inputs Forward::inputs(const Rows& rows, const Part& part) const {
  Inputs in{};
  in.a = input_of(rows, part);
  in.scale = scale_of(rows, part);
  in.rows = part.last - part.first;
  in.low_of = rows.low_of.data() + part.first;
  for (int r = 0; r < in.rows; ++r)  // second digits stand in the order of their rows
    if (in.low_of[r] >= 0 && in.low_rows++ == 0) in.low_first = in.low_of[r];
  return in;
}

// What the second digits of a part give.
float* Forward::low_out(const Inputs& in) const { return w_.low_out.data() + sz(in.low_first) * sz(widest_output_); }

// Where this member will start reading `linear`: for prefetching.
const void* Forward::start_of(const Linear* linear, int member, const Part& part) const {
  if (linear == nullptr) return nullptr;
  int begin, end;
  columns_of(member, part, linear->half_panels(), begin, end);
  return linear->panel(begin / 2);
}

void Forward::gemm(int member, const Part& part, const Linear& linear, const Rows& rows, float* out, Epilogue epilogue,
                   const Linear* next) {
  int begin, end;
  columns_of(member, part, linear.half_panels(), begin, end);
  const int width = is_gated(epilogue) ? linear.n() / 2 : linear.n();
  const Inputs in = inputs(rows, part);
  linear.run(k_, in, out, sz(width), epilogue, begin, end, start_of(next, member, part),
             w_.threads[sz(member)].panel.data(), low_out(in));
}

// One stage for both: the half panels of q, then those of k and v, in one list.
void Forward::project_qkv(int member, const Layer& l, const Rows& rows, const Part& part, bool queries, bool keys) {
  const int q = queries ? l.q.half_panels() : 0;
  int begin, end;
  columns_of(member, part, q + (keys ? l.kv.half_panels() : 0), begin, end);
  int8_t* scratch = w_.threads[sz(member)].panel.data();
  const Inputs in = inputs(rows, part);
  if (begin < q)
    l.q.run(k_, in, w_.q.data() + sz(part.at) * sz(c_.q_size()), sz(c_.q_size()), Epilogue::kStore, begin,
            end < q ? end : q, end > q ? l.kv.data() : start_of(&l.o, member, part), scratch, low_out(in));
  if (end > q)
    l.kv.run(k_, in, w_.kv.data() + sz(part.at) * sz(2 * c_.kv_size()), sz(2 * c_.kv_size()), Epilogue::kStore,
             begin > q ? begin - q : 0, end - q, start_of(&l.o, member, part), scratch,
             low_out(in) + sz(in.low_rows) * sz(l.q.padded()));
}

// q f32 [row, head, d] -> bf16 [kv head, row, head of the group, d], rotated and scaled by 1 / sqrt(d).
void Forward::rotate_q(int member, int index, const Rows& rows, const Part& part) {
  int begin, end;
  rows_of(member, part, begin, end);
  const int d = c_.head_dim;
  const float* norm = c_.qk_norm ? m_.layers_[sz(index)].q_norm.data() : nullptr;
  float* normed = w_.threads[sz(member)].row.data();
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  for (int r = begin; r < end; ++r) {
    const int p = position(token_of(rows, r));
    const float *cos = w_.cos.data() + rotary(index, p), *sin = w_.sin.data() + rotary(index, p);
    for (int h = 0; h < c_.heads; ++h) {
      const int kv_head = h / c_.group(), g = h % c_.group();
      const size_t row = (sz(kv_head) * sz(rows.count) + sz(r)) * sz(c_.group()) + sz(g);
      const float* q = w_.q.data() + (sz(part.at + r - part.first) * sz(c_.heads) + sz(h)) * sz(d);
      if (norm != nullptr) {
        k_.norm(q, norm, d, c_.norm_eps, normed);
        q = normed;
      }
      k_.rope(q, d, cos, sin, scale, w_.q_heads.data() + row * sz(d));
    }
  }
}

// Keys (rotated) and values of every token, into its node, in the layout that attention reads: sixteen keys side by
// side, values in pairs. The tokens of a block of sixteen are written together by one member, and so is every line.
void Forward::store_kv(int member, int index, const Part& part) {
  int turn = 0;  // whose a block's keys of a head are, where the part is shared; its values are the next one's
  for (int t = part.first, end; t < part.last; t = end) {
    const Place at = place(t);
    const int room = 16 - at.first % 16, s = w_.segment_of[sz(t)];
    for (end = t + 1; end < part.last && end - t < room && w_.segment_of[sz(end)] == s;) ++end;
    for (int h = 0; h < c_.kv_heads; ++h, ++turn) {
      if (part.alone || turn % m_.threads() == member) store_keys(member, index, h, part, t, end - t);
      if (part.alone || (turn + 1) % m_.threads() == member) store_values(member, index, h, part, t, end - t);
    }
  }
}

// Of `count` tokens of one block. Behind the last token of a node the block's other lanes become zero: their weights
// are 0, and 0 times garbage must be 0.
void Forward::store_keys(int member, int index, int h, const Part& part, int token, int count) {
  const int d = c_.head_dim, half = d / 2;
  const Place at = place(token);
  const Node& node = tree_.node(at.node);
  const float* norm = c_.qk_norm ? m_.layers_[sz(index)].k_norm.data() : nullptr;
  uint16_t* rotated = w_.threads[sz(member)].keys.data();
  float* normed = w_.threads[sz(member)].row.data();
  for (int j = 0; j < count; ++j) {
    const size_t turn = rotary(index, node.start + at.first + j);
    const float* k = w_.kv.data() + sz(part.at + token + j - part.first) * sz(2 * c_.kv_size()) + sz(h) * sz(d);
    if (norm != nullptr) k_.norm(k, norm, d, c_.norm_eps, normed);
    k_.rope(norm != nullptr ? normed : k, d, w_.cos.data() + turn, w_.sin.data() + turn, 1.0f, rotated + sz(j) * sz(d));
  }
  const size_t plane = sz(index) * sz(c_.kv_heads) + sz(h);
  const int lane = at.first % 16, zeros = at.first + count == node.n ? 16 - lane - count : 0;
  // The node's memory is this pass's own until it returns.
  uint16_t* keys =
      const_cast<uint16_t*>(node.k) + plane * key_size(node.room, d) + sz(at.first / 16) * sz(d) * 16 + sz(lane) * 2;
  for (int i = 0; i < half; ++i, keys += 32) {
    for (int j = 0; j < count; ++j) std::memcpy(keys + 2 * j, rotated + sz(j) * sz(d) + 2 * i, 4);
    std::memset(keys + 2 * count, 0, sz(zeros) * 4);
  }
}

void Forward::store_values(int member, int index, int h, const Part& part, int token, int count) {
  const int d = c_.head_dim;
  const Place at = place(token);
  const Node& node = tree_.node(at.node);
  const size_t plane = sz(index) * sz(c_.kv_heads) + sz(h);
  uint16_t* rounded = w_.threads[sz(member)].keys.data();
  for (int j = 0; j < count; ++j) {
    const float* v =
        w_.kv.data() + sz(part.at + token + j - part.first) * sz(2 * c_.kv_size()) + sz(c_.kv_size() + h * d);
    k_.to_bf16(v, d, rounded + sz(j) * sz(d));
  }
  for (int j = 0; j < count; ++j) {
    const int i = at.first + j;
    uint16_t* values = const_cast<uint16_t*>(node.v) + plane * value_size(node.room, d) + sz(i / 2) * sz(d) * 2;
    const uint16_t *row = rounded + sz(j) * sz(d), *next = row + d;
    if (i % 2 == 1) {  // the first of its pair stands there already
      for (int c = 0; c < d; ++c) values[2 * c + 1] = row[c];
    } else if (j + 1 < count) {
      for (int c = 0; c < d; ++c) values[2 * c] = row[c], values[2 * c + 1] = next[c];
      ++j;
    } else if (i + 1 == node.n) {
      for (int c = 0; c < d; ++c) values[2 * c] = row[c], values[2 * c + 1] = 0;
    } else {
      for (int c = 0; c < d; ++c) values[2 * c] = row[c];
    }
  }
}

// What this member multiplies by after attention: its share of the output projection, and the first of gate and up.
// Few rows wait for the weights more than for the products (17 rows take 35 operations a byte), and attention leaves
// memory idle.
void Forward::next_weights(int member, int index, Fetch (&next)[2]) const {
  constexpr size_t kMost = size_t{384} << 10;  // a share of L2 (1 MB), which holds the keys as well
  const Layer& l = m_.layers_[sz(index)];
  const Linear* linears[] = {&l.o, &l.gate_up};
  for (int i = 0; i < 2; ++i) {
    int begin, end;
    columns_of(member, Part{0, 0, 0, false}, linears[i]->half_panels(), begin, end);
    const auto* p = static_cast<const char*>(linears[i]->panel(begin / 2));
    const auto* stop = static_cast<const char*>(linears[i]->panel((end + 1) / 2));
    next[i] = {p, p + std::min(kMost, static_cast<size_t>(stop - p))};
  }
}

// Takes the task for this member, once a layer.
bool Forward::take(int index, size_t task) {
  std::atomic<int>& taken = w_.taken.data()[task];
  int before = index;
  return taken.load(std::memory_order_relaxed) == index &&
         taken.compare_exchange_strong(before, index + 1, std::memory_order_relaxed);
}

// A head's blocks follow each other and find its keys and values in L2. Every second member takes tasks from the end,
// so that two of them share but the head they meet at. Those whose keys are all of this member's own rows it takes
// first, before the others have come so far: nobody waits for a member that was given more, or a slower core.
void Forward::attend(int member, int index, const Rows& rows, uint32_t arrived) {
  const int blocks = static_cast<int>(rows.blocks->size()), tasks = blocks * c_.kv_heads;
  const bool from_end = member % 2 == 1, slots = rows.blocks != &w_.blocks;
  const size_t first = slots ? w_.blocks.size() * sz(c_.kv_heads) : 0;  // in `taken`
  int begin = 0, end = 0;  // own rows, where this member has them to itself
  if (!slots && alone(rows.count)) split(rows.count, member, begin, end);
  // Values stand in pairs, and a weight of 0 is multiplied as well: the last row's pair must be there, or be padding.
  const bool cut = end > begin && end < rows.count && w_.segment_of[sz(end)] == w_.segment_of[sz(end - 1)];
  const int own_end = end - cut;
  Fetch next[2];
  if (!alone(rows.count)) next_weights(member, index, next);
  Fetch* fetch = next;
  for (const bool own : {true, false}) {
    if (!own) m_.pool_.wait(arrived);
    for (int i = 0; i < tasks; ++i) {
      const int task = from_end ? tasks - 1 - i : i;
      const QueryBlock& block = (*rows.blocks)[sz(task % blocks)];
      const bool mine = block.from >= begin && block.row + block.count <= own_end;
      if (own && !mine) continue;
      if (!take(index, first + sz(task))) continue;
      if (next[0].p >= next[0].end) fetch = next + 1;
      attend(member, index, rows, block, task / blocks, fetch);
    }
  }
}

// One block of queries, the query heads of KV head h.
void Forward::attend(int member, int index, const Rows& rows, const QueryBlock& block, int h, Fetch* fetch) {
  auto& scratch = w_.threads[sz(member)];
  const int d = c_.head_dim, group = c_.group();
  const size_t plane = sz(index) * sz(c_.kv_heads) + sz(h);
  int depth = 0;
  for (int i = block.node; i >= 0; i = tree_.node(i).parent) depth += tree_.node(i).n > 0;
  KvPart* parts = scratch.parts.data();
  QueryEnd* ends = scratch.ends.data();
  int query = block.count - 1, part = depth;
  for (int i = block.node; i >= 0; i = tree_.node(i).parent) {
    const Node& node = tree_.node(i);
    if (node.n == 0) continue;  // an empty root
    parts[--part] = {node.k + plane * key_size(node.room, d), node.v + plane * value_size(node.room, d), node.n,
                     node.start};
    for (; query >= 0; --query) {
      const Place at = place(token_of(rows, block.row + query));
      if (at.node != i) break;
      ends[query] = {part, at.first + 1};
    }
  }
  Attention t;
  t.q = w_.q_heads.data() + (sz(h) * sz(rows.count) + sz(block.row)) * sz(group) * sz(d);
  t.parts = parts;
  t.ends = ends;
  t.part_count = depth;
  t.queries = block.count;
  t.group = group;
  t.d = d;
  t.scores = scratch.scores.data();
  t.probs = scratch.probs.data();
  t.out = w_.attention.data() + sz(block.row) * sz(c_.q_size()) + sz(h) * sz(group) * sz(d);
  t.out_stride = sz(c_.q_size());
  t.softcap = c_.softcap;
  t.window = c_.window(index);
  t.fetch = fetch;
  k_.attend(t);
}

void Forward::head(int member) {
  int begin, end;
  split(batch_.slot_count, member, begin, end);
  float* h = w_.threads[sz(member)].row.data();
  const float* weight = m_.final_norm_.empty() ? nullptr : m_.final_norm_.data();
  for (int s = begin; s < end; ++s) {
    k_.norm(w_.x_slots.data() + sz(s) * sz(c_.hidden), weight, c_.hidden, c_.norm_eps, h);
    if (hidden_ != nullptr) std::memcpy(hidden_ + sz(s) * sz(c_.hidden), h, sz(c_.hidden) * sizeof(float));
    for (int r = 0; r < c_.rows; ++r)
      logits_[sz(s) * sz(c_.rows) + sz(r)] =
          k_.dot(h, m_.head_.data() + sz(r) * sz(c_.hidden), c_.hidden) + m_.head_bias_[sz(r)];
  }
}

}  // namespace aegis

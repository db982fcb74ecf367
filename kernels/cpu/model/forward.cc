#include "model/forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace aegis {
namespace {

// 9 queries by 3 heads a KV head are 27 rows: five tiles, enough to reuse keys from L2, few enough that 16 tokens and
// their verdict still make 6 even tasks for 2 threads.
constexpr int kQueryBlock = 9;

size_t sz(int n) { return static_cast<size_t>(n); }

}  // namespace

Forward::Forward(Model& model, Tree& tree, const Batch& batch, float* logits, float* hidden)
    : m_(model),
      c_(model.config_),
      k_(model.kernels_),
      tree_(tree),
      batch_(batch),
      w_(*model.workspace_),
      logits_(logits),
      hidden_(hidden),
      fine_(batch.fine ? batch.tokens() : batch.slot_count) {
  const int tokens = batch.tokens(), slots = batch.slot_count;
  w_.blocks.clear();
  w_.slot_blocks.clear();
  w_.places.clear();
  w_.segment_of.resize(sz(tokens));
  w_.low_of.assign(sz(tokens), -1);
  w_.slot_low_of.resize(sz(slots));
  for (int i = 0; i < fine_; ++i) w_.low_of[sz(batch.fine ? i : batch.slots[i])] = i;
  for (int i = 0; i < slots; ++i) w_.slot_low_of[sz(i)] = i;
  int longest = 0, positions = 0, slot = 0, depth = 1;
  for (int s = 0; s < batch.segments; ++s) {
    const int begin = batch.offsets[s], n = batch.offsets[s + 1] - begin;
    int id = batch.parents[s], first = 0;
    if (batch.grows(s)) {
      first = batch.kept[s];
      tree.resize(id, first + n);
    } else {
      const int room = batch.room == nullptr ? n : std::max(n, batch.room[s]);
      id = tree.add(id, n, room, c_.layers * c_.kv_heads, c_.head_dim);
    }
    w_.places.push_back({id, first});
    for (int t = 0; t < n; ++t) w_.segment_of[sz(begin + t)] = s;
    for (; slot < slots && batch.slots[slot] < begin + n; ++slot) w_.slot_blocks.push_back({id, 1, slot});
    int padded = 0, nodes = 0;
    for (int i = id; i >= 0; i = tree.node(i).parent, ++nodes) padded += (tree.node(i).n + 15) / 16 * 16;
    longest = padded > longest ? padded : longest;
    depth = nodes > depth ? nodes : depth;
    const int end = tree.node(id).start + first + n;
    positions = end > positions ? end : positions;
  }

  add_blocks();

  const auto widest = [](int a, int b) { return a > b ? a : b; };
  const int input = widest(widest(c_.hidden, c_.q_size()), c_.intermediate);
  w_.x.reserve(sz(tokens) * sz(c_.hidden));
  w_.x_slots.reserve(sz(slots) * sz(c_.hidden));
  w_.q.reserve(sz(tokens) * sz(c_.q_size()));
  w_.q_heads.reserve(sz(tokens) * sz(c_.q_size()));
  w_.kv.reserve(sz(tokens) * sz(2 * c_.kv_size()));
  w_.attention.reserve(sz(tokens) * sz(c_.q_size()));
  if (c_.out_norms) w_.branch.reserve(sz(tokens) * sz(c_.hidden));
  w_.mlp.reserve(sz(tokens) * sz(c_.intermediate));
  w_.a.reserve(sz(tokens) * sz(input) * 2);
  w_.a_slots.reserve(sz(slots) * sz(input) * 2);
  w_.a_scale.reserve(sz(tokens));
  w_.a_scale_slots.reserve(sz(slots));
  w_.low.reserve(sz(fine_) * sz(input));
  w_.low_slots.reserve(sz(slots) * sz(input));
  w_.low_scale.reserve(sz(fine_));
  w_.low_scale_slots.reserve(sz(slots));
  const Layer& l = m_.layers_[0];
  const int output =
      widest(widest(l.q.padded() + l.kv.padded(), l.o.padded()), widest(l.gate_up.padded(), l.down.padded()));
  w_.low_out.reserve(sz(fine_) * sz(output));
  w_.threads.resize(sz(m_.threads()));
  const size_t score_rows = sz(std::min(kQueryBlock * c_.group(), kMaxTileRows));
  for (auto& t : w_.threads) {
    t.scores.reserve(score_rows * sz(longest));
    t.probs.reserve(score_rows * sz(longest));
    t.row.reserve(sz(widest(input, 2 * c_.kv_size())));
    t.panel.reserve(sz(input) * kPanel);
    t.parts.reserve(sz(depth));
    t.ends.reserve(sz(kQueryBlock));
  }

  if (positions > w_.positions) {  // rotary tables, grown in steps: cos and sin of position * frequency
    const int rows = (positions + 511) / 512 * 512, half = c_.head_dim / 2;
    w_.positions = 0;
    const size_t tables = c_.rope_scale.size(), size = sz(rows) * sz(half);
    w_.cos.reserve(tables * size);
    w_.sin.reserve(tables * size);
    for (size_t t = 0; t < tables; ++t)
      for (int p = 0; p < rows; ++p)
        for (int i = 0; i < half; ++i) {
          const float angle = static_cast<float>(p) * c_.inverse_frequency[t * sz(half) + sz(i)];
          w_.cos.data()[t * size + sz(p) * sz(half) + sz(i)] = std::cos(angle) * c_.rope_scale[t];
          w_.sin.data()[t * size + sz(p) * sz(half) + sz(i)] = std::sin(angle) * c_.rope_scale[t];
        }
    w_.positions = rows;
  }
}

// Segments that hang from each other are one run of queries, cut into blocks of even size: a verdict's query reads its
// prompt's keys together with the prompt's last ones.
void Forward::add_blocks() {
  for (int s = 0, end; s < batch_.segments; s = end) {
    for (end = s + 1; end < batch_.segments; ++end)
      if (tree_.node(w_.places[sz(end)].node).parent != w_.places[sz(end - 1)].node) break;
    const int begin = batch_.offsets[s], n = batch_.offsets[end] - begin;
    const int64_t count = (n + kQueryBlock - 1) / kQueryBlock;
    for (int64_t i = 0; i < count; ++i) {
      const int row = begin + static_cast<int>(n * i / count), stop = begin + static_cast<int>(n * (i + 1) / count);
      w_.blocks.push_back({place(stop - 1).node, stop - row, row});
    }
  }
  // The most work first, so that the threads end together.
  std::sort(w_.blocks.begin(), w_.blocks.end(), [&](const QueryBlock& a, const QueryBlock& b) {
    const auto work = [&](const QueryBlock& x) { return int64_t{x.count} * (position(x.row) + 16); };
    return work(a) != work(b) ? work(a) > work(b) : a.row < b.row;
  });
}

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

void Forward::operator()(int member) {
  embed(member);
  m_.pool_.barrier();
  for (int i = 0; i < c_.layers; ++i) layer(member, i);
  head(member);
}

void Forward::embed(int member) {
  int begin, end;
  split(batch_.tokens(), member, begin, end);
  for (int t = begin; t < end; ++t)
    k_.from_bf16(m_.embedding_ + sz(batch_.ids[t]) * sz(c_.hidden), c_.hidden, w_.x.data() + sz(t) * sz(c_.hidden));
}

// The stages of a decoder layer. Rows are split between the members where a stage works by row, output channels
// where it is a GEMM, query blocks where it is attention; a barrier wherever the split changes.
void Forward::layer(int member, int index) {
  const Layer& l = m_.layers_[sz(index)];
  const bool last = index + 1 == c_.layers;
  const Layer* following = last ? nullptr : &m_.layers_[sz(index + 1)];
  const int tokens = batch_.tokens(), slots = batch_.slot_count;
  const Rows all{w_.x.data(),         tokens,    w_.a.data(), w_.a_scale.data(), fine_, w_.low.data(),
                 w_.low_scale.data(), w_.low_of, &w_.blocks};
  // After the last layer only the slots are read: there, everything but keys and values is done for them alone.
  const Rows some{w_.x_slots.data(),         slots,          w_.a_slots.data(),
                  w_.a_scale_slots.data(),   slots,          w_.low_slots.data(),
                  w_.low_scale_slots.data(), w_.slot_low_of, &w_.slot_blocks};
  const Rows& rows = last ? some : all;
  const auto barrier = [&] { m_.pool_.barrier(); };

  prepare(member, all, l.q, all.x, c_.hidden, &l.input_norm, c_.input_block);
  if (last) {
    int begin, end;
    split(slots, member, begin, end);
    for (int s = begin; s < end; ++s)
      std::memcpy(some.x + sz(s) * sz(c_.hidden), all.x + sz(batch_.slots[s]) * sz(c_.hidden), sz(c_.hidden) * 4);
    prepare(member, some, l.q, some.x, c_.hidden, &l.input_norm, c_.input_block);
  }
  barrier();
  project_qkv(member, l, rows, all);
  barrier();
  rotate_q(member, index, rows);
  store_kv(member, index);
  if (member == 0) next_task_[(index + 1) % 2].store(0, std::memory_order_relaxed);
  barrier();
  if (rows.count == 0) return;  // a pass without slots (the policy's KV) ends here
  attend(member, index, rows);
  barrier();
  prepare(member, rows, l.o, w_.attention.data(), c_.q_size(), nullptr, 0);
  barrier();
  // A norm of the branch's own needs all of a row before it is added.
  float* branch = c_.out_norms ? w_.branch.data() : rows.x;
  const Epilogue add = c_.out_norms ? Epilogue::kStore : Epilogue::kAdd;
  gemm(member, l.o, rows, branch, add, &l.gate_up);
  barrier();
  if (c_.out_norms) add_normed(member, rows, l.attention_out_norm);  // the rows that this member prepares
  prepare(member, rows, l.gate_up, rows.x, c_.hidden, &l.post_norm, c_.input_block);
  barrier();
  gemm(member, l.gate_up, rows, w_.mlp.data(), c_.gelu ? Epilogue::kGeluMul : Epilogue::kSiluMul, &l.down);
  barrier();
  prepare(member, rows, l.down, w_.mlp.data(), c_.intermediate, nullptr, c_.hadamard_block);
  barrier();
  gemm(member, l.down, rows, branch, add, following == nullptr ? nullptr : &following->q);
  barrier();
  if (c_.out_norms) {
    add_normed(member, rows, l.mlp_out_norm);
    barrier();  // the last layer copies slots, which may be another member's rows
  }
}

void Forward::add_normed(int member, const Rows& rows, const std::vector<float>& norm) {
  int begin, end;
  split(rows.count, member, begin, end);
  for (int r = begin; r < end; ++r)
    k_.norm_add(w_.branch.data() + sz(r) * sz(c_.hidden), norm.data(), c_.hidden, c_.norm_eps,
                rows.x + sz(r) * sz(c_.hidden));
}

// Rows of fp32 -> what `linear` multiplies: int8 and a scale a row, or bf16. norm: RMSNorm first (empty: weights of
// one); hadamard: then a transform in blocks.
void Forward::prepare(int member, const Rows& rows, const Linear& linear, const float* x, int width,
                      const std::vector<float>* norm, int hadamard) {
  int begin, end;
  split(rows.count, member, begin, end);
  const float* weight = norm == nullptr || norm->empty() ? nullptr : norm->data();
  float* scratch = w_.threads[sz(member)].row.data();
  for (int r = begin; r < end; ++r) {
    const float* row = x + sz(r) * sz(width);
    if (norm != nullptr && hadamard != 0) {
      k_.norm(row, weight, width, c_.norm_eps, scratch);
      row = scratch;  // the transform works in place
    }
    if (linear.int8_input()) {
      auto* out = reinterpret_cast<uint8_t*>(rows.a) + sz(r) * sz(width);
      const int fine = rows.low_of[sz(r)];
      auto* low = fine < 0 ? nullptr : reinterpret_cast<uint8_t*>(rows.low) + sz(fine) * sz(width);
      if (hadamard != 0)
        k_.hadamard_int8(row, width, hadamard, scratch, out, rows.a_scale + r, low);
      else if (norm != nullptr)
        k_.norm_int8(row, weight, width, c_.norm_eps, out, rows.a_scale + r, low);
      else
        k_.quantise(row, width, out, rows.a_scale + r, low);
      if (fine >= 0) rows.low_scale[fine] = rows.a_scale[r] / kLowSteps;
    } else {
      if (hadamard != 0) {
        k_.hadamard(row, width, hadamard, scratch);
        row = scratch;
      }
      auto* out = reinterpret_cast<uint16_t*>(rows.a) + sz(r) * sz(width);
      if (norm != nullptr && hadamard == 0)
        k_.norm_bf16(row, weight, width, c_.norm_eps, out);
      else
        k_.to_bf16(row, width, out);
    }
  }
}

// Where this member will start reading `linear`: for prefetching.
const void* Forward::share_of(const Linear* linear, int member) const {
  if (linear == nullptr) return nullptr;
  int begin, end;
  split(linear->half_panels(), member, begin, end);
  return linear->panel(begin / 2);
}

void Forward::gemm(int member, const Linear& linear, const Rows& rows, float* out, Epilogue epilogue,
                   const Linear* next) {
  int begin, end;
  split(linear.half_panels(), member, begin, end);
  const int width = is_gated(epilogue) ? linear.n() / 2 : linear.n();
  linear.run(k_, inputs(rows), out, sz(width), epilogue, begin, end, share_of(next, member),
             w_.threads[sz(member)].panel.data(), w_.low_out.data());
}

Inputs Forward::inputs(const Rows& rows) const {
  return {rows.a, rows.a_scale, rows.count, rows.low, rows.low_scale, rows.fine, rows.low_of.data()};
}

// One stage for both: the half panels of q, then those of k and v, in one list.
void Forward::project_qkv(int member, const Layer& l, const Rows& q_rows, const Rows& kv_rows) {
  const int q = l.q.half_panels();
  int begin, end;
  split(q + l.kv.half_panels(), member, begin, end);
  int8_t* scratch = w_.threads[sz(member)].panel.data();
  if (begin < q && q_rows.count > 0)
    l.q.run(k_, inputs(q_rows), w_.q.data(), sz(c_.q_size()), Epilogue::kStore, begin, end < q ? end : q,
            end > q ? l.kv.data() : share_of(&l.o, member), scratch, w_.low_out.data());
  if (end > q)
    l.kv.run(k_, inputs(kv_rows), w_.kv.data(), sz(2 * c_.kv_size()), Epilogue::kStore, begin > q ? begin - q : 0,
             end - q, share_of(&l.o, member), scratch, w_.low_out.data() + sz(fine_) * sz(l.q.padded()));
}

// q f32 [row, head, d] -> bf16 [kv head, row, head of the group, d], rotated and scaled by 1 / sqrt(d).
void Forward::rotate_q(int member, int index, const Rows& rows) {
  int begin, end;
  split(rows.count, member, begin, end);
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
      const float* q = w_.q.data() + (sz(r) * sz(c_.heads) + sz(h)) * sz(d);
      if (norm != nullptr) {
        k_.norm(q, norm, d, c_.norm_eps, normed);
        q = normed;
      }
      k_.rope(q, d, cos, sin, scale, w_.q_heads.data() + row * sz(d));
    }
  }
}

// Keys (rotated) and values of every token, into its node, in the layout that attention reads. The last token of a
// node zeroes the padding behind it: its weights are 0, and 0 times garbage must be 0.
void Forward::store_kv(int member, int index) {
  const int d = c_.head_dim, half = d / 2, width = 2 * c_.kv_size();
  const float* norm = c_.qk_norm ? m_.layers_[sz(index)].k_norm.data() : nullptr;
  auto* rotated = reinterpret_cast<uint16_t*>(w_.threads[sz(member)].row.data());
  float* normed = w_.threads[sz(member)].row.data() + d;  // behind what is rotated
  int begin, end;
  split(batch_.tokens(), member, begin, end);
  for (int t = begin; t < end; ++t) {
    const Place at = place(t);
    const Node& node = tree_.node(at.node);
    const int i = at.first, p = node.start + i;
    const float *cos = w_.cos.data() + rotary(index, p), *sin = w_.sin.data() + rotary(index, p);
    for (int h = 0; h < c_.kv_heads; ++h) {
      const size_t plane = sz(index) * sz(c_.kv_heads) + sz(h);
      const float* k = w_.kv.data() + sz(t) * sz(width) + sz(h) * sz(d);
      // The node's memory is this pass's own until it returns.
      uint16_t* keys =
          const_cast<uint16_t*>(node.k) + plane * key_size(node.room, d) + sz(i / 16) * sz(d) * 16 + sz(i % 16) * 2;
      if (norm != nullptr) k_.norm(k, norm, d, c_.norm_eps, normed);
      k_.rope(norm != nullptr ? normed : k, d, cos, sin, 1.0f, rotated);
      for (int j = 0; j < half; ++j) std::memcpy(keys + sz(j) * 32, rotated + 2 * j, 4);
      uint16_t* values =
          const_cast<uint16_t*>(node.v) + plane * value_size(node.room, d) + sz(i / 2) * sz(d) * 2 + sz(i % 2);
      k_.to_bf16(k + c_.kv_size(), d, rotated);
      for (int j = 0; j < d; ++j) values[2 * j] = rotated[j];
      if (i + 1 < node.n) continue;
      for (int lane = i % 16 + 1; lane < 16; ++lane)
        for (int j = 0; j < half; ++j) std::memset(keys + (lane - i % 16) * 2 + sz(j) * 32, 0, 4);
      if (i % 2 == 0)
        for (int j = 0; j < d; ++j) values[2 * j + 1] = 0;
    }
  }
}

void Forward::attend(int member, int index, const Rows& rows) {
  auto& scratch = w_.threads[sz(member)];
  const int d = c_.head_dim, group = c_.group();
  const int blocks = static_cast<int>(rows.blocks->size()), tasks = blocks * c_.kv_heads;
  std::atomic<int>& counter = next_task_[index % 2];
  for (int task; (task = counter.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
    // A head's blocks follow each other: they find its keys and values in L2 or L3.
    const QueryBlock& block = (*rows.blocks)[sz(task % blocks)];
    const int h = task / blocks;
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
    k_.attend(t);
  }
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

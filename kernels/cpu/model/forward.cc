#include "model/forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

namespace aegis {
namespace {

// 9 queries by 3 heads a KV head are 27 rows: five tiles, enough to reuse keys from L2, few enough that 16 tokens and
// their verdict still make 6 even tasks for 2 threads.
constexpr int kQueryBlock = 9;

// From so many rows a member on, members share out rows and not output channels.
constexpr int kOwnRows = 32;
// Rows of a part: few enough that its rows of the MLP, prepared and not, stay in L2 (135M: 0.6 MB) from stage to
// stage; enough that a panel of weights is fetched behind eleven tiles.
constexpr int kPartRows = 64;

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
  w_.from.clear();
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
    w_.from.push_back(begin);
    for (int t = 0; t < n; ++t) w_.segment_of[sz(begin + t)] = s;
    for (; slot < slots && batch.slots[slot] < begin + n; ++slot) w_.slot_blocks.push_back({id, 1, slot, 0});
    int padded = 0, nodes = 0;
    for (int i = id; i >= 0; i = tree.node(i).parent, ++nodes) padded += (tree.node(i).n + 15) / 16 * 16;
    longest = padded > longest ? padded : longest;
    depth = nodes > depth ? nodes : depth;
    const int end = tree.node(id).start + first + n;
    positions = end > positions ? end : positions;
  }
  add_blocks();
  const size_t tasks = w_.blocks.size() * sz(c_.kv_heads), all_tasks = tasks + w_.slot_blocks.size() * sz(c_.kv_heads);
  w_.taken.reserve(all_tasks);
  for (size_t i = 0; i < all_tasks; ++i)  // those of slots are taken in the last layer alone
    new (w_.taken.data() + i) std::atomic<int>(i < tasks ? 0 : c_.layers - 1);

  const auto widest = [](int a, int b) { return a > b ? a : b; };
  const int input = widest_input_ = widest(widest(c_.hidden, c_.q_size()), c_.intermediate);
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
  w_.a_scale.reserve(sz(tokens) * 2);
  w_.a_scale_slots.reserve(sz(slots) * 2);
  const Layer& l = m_.layers_[0];
  const int output = widest_output_ =
      widest(widest(l.q.padded() + l.kv.padded(), l.o.padded()), widest(l.gate_up.padded(), l.down.padded()));
  w_.low_out.reserve(sz(fine_) * sz(output));
  w_.threads.resize(sz(m_.threads()));
  const size_t score_rows = sz(std::min(kQueryBlock * c_.group(), kMaxTileRows));
  for (auto& t : w_.threads) {
    t.scores.reserve(score_rows * sz(longest));
    t.probs.reserve(score_rows * sz(longest));
    t.row.reserve(sz(widest(input, 2 * c_.kv_size())));
    t.keys.reserve(sz(16 * c_.head_dim));
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
  for (int s = 0; s < batch_.segments; ++s)
    for (int ancestor = tree_.node(w_.places[sz(s)].node).parent, e = s - 1; e >= 0; --e)
      if (w_.places[sz(e)].node == ancestor) w_.from[sz(s)] = w_.from[sz(e)];
  for (int s = 0, end; s < batch_.segments; s = end) {
    for (end = s + 1; end < batch_.segments; ++end)
      if (tree_.node(w_.places[sz(end)].node).parent != w_.places[sz(end - 1)].node) break;
    const int begin = batch_.offsets[s], n = batch_.offsets[end] - begin;
    const int64_t count = (n + kQueryBlock - 1) / kQueryBlock;
    for (int64_t i = 0; i < count; ++i) {
      const int row = begin + static_cast<int>(n * i / count), stop = begin + static_cast<int>(n * (i + 1) / count);
      w_.blocks.push_back({place(stop - 1).node, stop - row, row, w_.from[sz(s)]});
    }
  }
  // The most work first, so that the threads end together.
  std::sort(w_.blocks.begin(), w_.blocks.end(), [&](const QueryBlock& a, const QueryBlock& b) {
    const auto work = [&](const QueryBlock& x) { return int64_t{x.count} * (position(x.row) + 16); };
    return work(a) != work(b) ? work(a) > work(b) : a.row < b.row;
  });
}

void Forward::operator()(int member) {
  embed(member);
  for (int i = 0; i < c_.layers; ++i) layer(member, i);
  head(member);
}

// Whether members share out `count` rows, see Part.
bool Forward::alone(int count) const {
  const bool unpacks = m_.layers_[0].gate_up.scheme() == Scheme::kInt4;  // a panel once a part: the fewer the better
  return !unpacks && count >= kOwnRows * m_.threads();
}

// Calls f(part) for the parts of `count` rows that this member works on.
template <class F>
void Forward::in_parts(int member, int count, const F& f) {
  if (!alone(count)) return f(Part{0, count, 0, false});
  int begin, end;
  split(count, member, begin, end);
  const int parts = (end - begin + kPartRows - 1) / kPartRows;
  for (int i = 0; i < parts; ++i) {
    const int rows = end - begin;
    f(Part{begin + rows * i / parts, begin + rows * (i + 1) / parts, begin, true});
  }
}

void Forward::layer(int member, int index) {
  const bool last = index + 1 == c_.layers;
  const int tokens = batch_.tokens(), slots = batch_.slot_count;
  const Rows all{w_.x.data(), tokens, w_.a.data(), w_.a_scale.data(), w_.low_of, &w_.blocks};
  // After the last layer only the slots are read: there, everything but keys and values is done for them alone.
  const Rows some{w_.x_slots.data(),       slots,          w_.a_slots.data(),
                  w_.a_scale_slots.data(), w_.slot_low_of, &w_.slot_blocks};
  const Rows& rows = last ? some : all;

  if (last) m_.pool_.barrier();  // the rows of slots are copied, which may be another member's
  in_parts(member, tokens, [&](const Part& part) { project(member, index, all, part, !last, true); });
  if (last) {
    int begin, end;
    split(slots, member, begin, end);
    for (int s = begin; s < end; ++s)
      std::memcpy(some.x + sz(s) * sz(c_.hidden), all.x + sz(batch_.slots[s]) * sz(c_.hidden), sz(c_.hidden) * 4);
    if (slots > 0) in_parts(member, slots, [&](const Part& part) { project(member, index, some, part, true, false); });
  }
  const uint32_t arrived = m_.pool_.arrive();
  if (rows.count == 0) return m_.pool_.wait(arrived);  // a pass without slots (the policy's KV) ends here
  attend(member, index, rows, arrived);
  m_.pool_.barrier();
  in_parts(member, rows.count, [&](const Part& part) { transform(member, index, rows, part); });
}

// From the residual rows of a part to its queries, and its keys and values in the tree.
void Forward::project(int member, int index, const Rows& rows, const Part& part, bool queries, bool keys) {
  const Layer& l = m_.layers_[sz(index)];
  prepare(member, rows, part, l.q, rows.x + sz(part.first) * sz(c_.hidden), c_.hidden, &l.input_norm, c_.input_block);
  sync(part);
  project_qkv(member, l, rows, part, queries, keys);
  sync(part);
  if (queries) rotate_q(member, index, rows, part);
  if (keys) store_kv(member, index, part);
}

// What follows attention: output projection and MLP, both added to the residual rows.
void Forward::transform(int member, int index, const Rows& rows, const Part& part) {
  const Layer& l = m_.layers_[sz(index)];
  const Layer* following = index + 1 == c_.layers ? nullptr : &m_.layers_[sz(index + 1)];
  float* x = rows.x + sz(part.first) * sz(c_.hidden);
  float* mlp = w_.mlp.data() + sz(part.at) * sz(c_.intermediate);
  // A norm of the branch's own needs all of a row before it is added.
  float* branch = c_.out_norms ? w_.branch.data() + sz(part.at) * sz(c_.hidden) : x;
  const Epilogue add = c_.out_norms ? Epilogue::kStore : Epilogue::kAdd;
  prepare(member, rows, part, l.o, w_.attention.data() + sz(part.first) * sz(c_.q_size()), c_.q_size(), nullptr, 0);
  sync(part);
  gemm(member, part, l.o, rows, branch, add, &l.gate_up);
  sync(part);
  if (c_.out_norms) add_normed(member, part, branch, l.attention_out_norm, x);  // the rows that this member prepares
  prepare(member, rows, part, l.gate_up, x, c_.hidden, &l.post_norm, c_.input_block);
  sync(part);
  gemm(member, part, l.gate_up, rows, mlp, c_.gelu ? Epilogue::kGeluMul : Epilogue::kSiluMul, &l.down);
  sync(part);
  prepare(member, rows, part, l.down, mlp, c_.intermediate, nullptr, c_.hadamard_block);
  sync(part);
  gemm(member, part, l.down, rows, branch, add, following == nullptr ? nullptr : &following->q);
  sync(part);
  if (c_.out_norms) add_normed(member, part, branch, l.mlp_out_norm, x);
}

}  // namespace aegis

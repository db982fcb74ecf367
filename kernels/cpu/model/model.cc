#include "model/model.h"

#include <stdexcept>
#include <tuple>

#include "model/forward.h"
#include "runtime/dispatch.h"

namespace aegis {
namespace {

// Of a batch, computed in one pass: enough for every thread's matrix products, few enough that a batch of any size
// takes the memory of a small one (256 tokens of the 135M model: 5 MB of rows). It costs no speed: the next pass
// reads the weights again, which the matrix products prefetch (docs/kernels.md, 6).
constexpr int kPassTokens = 256;

}  // namespace

void Config::check() const {
  const auto require = [](bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
  };
  const auto within = [](int x, int low, int high) { return x >= low && x <= high; };
  // Upper limits keep every product of sizes within 63 bits, and offsets inside a packed panel within 31.
  require(within(layers, 1, 1024), "layers must be 1 to 1024");
  require(within(hidden, 16, 1 << 16) && hidden % 16 == 0, "hidden must be a multiple of 16, up to 65536");
  require(within(intermediate, 16, 1 << 18) && intermediate % 16 == 0,
          "intermediate must be a multiple of 16, up to 262144");
  require(within(head_dim, 16, kMaxHead) && head_dim % 16 == 0, "head_dim must be a multiple of 16, up to 512");
  require(within(heads, 1, 1024) && within(kv_heads, 1, heads) && heads % kv_heads == 0, "kv_heads must divide heads");
  require(within(vocab, 1, 1 << 24), "vocab must be 1 to 16777216");
  require(within(context, 1, 1 << 20), "context must be 1 to 1048576");
  require(within(rows, 1, 4096), "rows must be 1 to 4096");
  require(norm_eps > 0.0f && norm_eps < 1.0f, "norm_eps must be between 0 and 1");
  const auto divides = [](int block, int width) {
    return block == 0 || (block >= 16 && (block & (block - 1)) == 0 && width % block == 0);
  };
  require(divides(hadamard_block, intermediate),
          "hadamard_block must be 0 or a power of two >= 16 that divides intermediate");
  require(divides(input_block, hidden), "input_block must be 0 or a power of two >= 16 that divides hidden");
  const size_t tables = rope_scale.size();
  require(tables >= 1 && tables <= 16, "rope_scale must have 1 to 16 values");
  require(inverse_frequency.size() == tables * static_cast<size_t>(head_dim / 2),
          "inverse_frequency must have head_dim / 2 values a table");
  require(softcap >= 0.0f && softcap <= 1e6f, "softcap must be 0 to 1000000");
  require(windows.empty() || windows.size() == static_cast<size_t>(layers), "windows must have a value a layer");
  for (int window : windows) require(within(window, 0, 1 << 20), "a window must be 0 to 1048576");
  require(rope_of.empty() || rope_of.size() == static_cast<size_t>(layers), "rope_of must have a value a layer");
  for (int table : rope_of) require(within(table, 0, static_cast<int>(tables) - 1), "rope_of names no rotary table");
}

Model::Model(Config config, int threads)
    : config_((config.check(), std::move(config))),
      kernels_(choose_kernels()),
      layers_(static_cast<size_t>(config_.layers)),
      pool_(threads),
      workspace_(std::make_shared<Workspace>()) {
  for (Layer& l : layers_)
    for (Linear* linear : {&l.q, &l.kv, &l.o, &l.gate_up, &l.down}) linear->use(pages_);
}

Linear& Model::linear(int i, const std::string& name) {
  if (i < 0 || i >= config_.layers) throw std::invalid_argument("no layer " + std::to_string(i));
  Layer& layer = layers_[static_cast<size_t>(i)];
  if (name == "q") return layer.q;
  if (name == "kv") return layer.kv;
  if (name == "o") return layer.o;
  if (name == "gate_up") return layer.gate_up;
  if (name == "down") return layer.down;
  throw std::invalid_argument("no linear layer is called " + name);
}

void Model::set_head(const float* weight, const float* bias) {
  const size_t rows = static_cast<size_t>(config_.rows);
  head_.assign(weight, weight + rows * static_cast<size_t>(config_.hidden));
  head_bias_.assign(bias, bias + rows);
}

void Model::check_complete() const {
  for (int i = 0; i < config_.layers; ++i) {
    const Layer& l = layers_[static_cast<size_t>(i)];
    for (const auto& [linear, name] :
         {std::pair{&l.q, "q"}, {&l.kv, "kv"}, {&l.o, "o"}, {&l.gate_up, "gate_up"}, {&l.down, "down"}})
      if (linear->scheme() == Scheme::kNone)
        throw std::invalid_argument("weight missing: layer " + std::to_string(i) + " " + name);
    for (const auto& [norm, wanted, name] : {std::tuple{&l.q_norm, config_.qk_norm, "q_norm"},
                                             {&l.k_norm, config_.qk_norm, "k_norm"},
                                             {&l.attention_out_norm, config_.out_norms, "attention_out_norm"},
                                             {&l.mlp_out_norm, config_.out_norms, "mlp_out_norm"}})
      if (wanted == norm->empty())
        throw std::invalid_argument((wanted ? "weight missing: layer " : "not of this model: layer ") +
                                    std::to_string(i) + " " + name);
    // Both read the same prepared rows.
    if (l.q.int8_input() != l.kv.int8_input())
      throw std::invalid_argument("q and kv of layer " + std::to_string(i) + " must both be int8 or both bf16");
  }
  if (embedding_ == nullptr) throw std::invalid_argument("weight missing: embedding");
  if (head_.empty()) throw std::invalid_argument("weight missing: head");
}

void Model::check(const Tree& tree, const Batch& b) {
  const auto fail = [](const std::string& what) { throw std::invalid_argument(what); };
  check_complete();
  if (b.segments < 1) fail("a batch needs at least one segment");
  if (b.offsets[0] != 0) fail("offsets must start at 0");
  auto& ends = workspace_->ends;
  auto& grown = workspace_->grown;
  ends.clear();
  grown.clear();
  for (int s = 0; s < b.segments; ++s) {
    if (b.offsets[s + 1] <= b.offsets[s]) fail("segment " + std::to_string(s) + " is empty");
    const int n = b.offsets[s + 1] - b.offsets[s], parent = b.parents[s];
    if (parent < 0 || parent >= tree.size() + static_cast<int>(ends.size()))
      fail("segment " + std::to_string(s) + ": no such parent node");
    int64_t start;
    if (b.grows(s)) {
      start = check_grows(tree, b, s);
      grown.push_back({parent, tree.node(parent).n, start + n});
    } else {
      if (b.room != nullptr && b.room[s] > config_.context)
        fail("segment " + std::to_string(s) + ": room for more tokens than the context holds");
      start = parent < tree.size() ? int64_t{tree.node(parent).start} + tree.node(parent).n
                                   : ends[static_cast<size_t>(parent - tree.size())];
      for (const Grown& g : grown)
        if (g.node == parent) start = g.end;
      ends.push_back(start + n);
    }
    if (start + n > config_.context)
      throw std::length_error(std::to_string(start + n) + " tokens, but the model's context is " +
                              std::to_string(config_.context));
  }
  for (int i = 0; i < b.tokens(); ++i)
    if (b.ids[i] < 0 || b.ids[i] >= config_.vocab)
      fail("token id " + std::to_string(b.ids[i]) + " is outside the vocabulary");
  if (b.fine && b.slot_count > 0) fail("a policy's root has no slots");
  for (int i = 0; i < b.slot_count; ++i)
    if (b.slots[i] < 0 || b.slots[i] >= b.tokens() || (i > 0 && b.slots[i] <= b.slots[i - 1]))
      fail("slots must be increasing indices of the batch's tokens");
}

// The position at which segment s goes on with the node that it grows.
int64_t Model::check_grows(const Tree& tree, const Batch& b, int s) const {
  const int id = b.parents[s], kept = b.kept[s];
  const auto fail = [&](const char* why) {
    throw std::invalid_argument("segment " + std::to_string(s) + ": node " + std::to_string(id) +
                                " can not grow: " + why);
  };
  if (id < 1 || id >= tree.size()) fail("it is the root, or of the same batch");
  // Positions of what hangs from it, and of nothing else, rest on its length.
  for (int i = id + 1; i < tree.size(); ++i)
    if (tree.node(i).parent == id) fail("it has children");
  for (int i = 0; i < s; ++i)
    if (b.parents[i] == id) fail("the batch has used it before");
  const Node& node = tree.node(id);
  if (kept > node.n) fail("it has fewer tokens than are to be kept");
  if (int64_t{kept} + b.offsets[s + 1] - b.offsets[s] > node.room) fail("it has no room");
  return int64_t{node.start} + kept;
}

// The segments from `first` on that are computed side by side, and their slots, from `slot` on.
Batch Model::next_part(const Batch& b, int first, int slot) {
  const int base = b.offsets[first];
  int last = first + 1;
  while (last < b.segments && b.offsets[last + 1] - base <= kPassTokens) ++last;
  if (first == 0 && last == b.segments) return b;
  auto& offsets = workspace_->part_offsets;
  auto& slots = workspace_->part_slots;
  offsets.clear();
  slots.clear();
  for (int s = first; s <= last; ++s) offsets.push_back(b.offsets[s] - base);
  for (int i = slot; i < b.slot_count && b.slots[i] < b.offsets[last]; ++i) slots.push_back(b.slots[i] - base);
  return {b.ids + base,
          offsets.data(),
          b.parents + first,
          last - first,
          slots.data(),
          static_cast<int>(slots.size()),
          b.fine,
          b.kept == nullptr ? nullptr : b.kept + first,
          b.room == nullptr ? nullptr : b.room + first};
}

void Model::extend(Tree& tree, const Batch& batch, float* logits, float* hidden) {
  pool_.check_process();
  std::lock_guard<std::mutex> lock(mutex_);
  check(tree, batch);
  const int before = tree.size();
  try {
    for (int s = 0, slot = 0; s < batch.segments;) {
      const Batch part = next_part(batch, s, slot);
      Forward forward(
          *this, tree, part, logits + static_cast<size_t>(slot) * static_cast<size_t>(config_.rows),
          hidden == nullptr ? nullptr : hidden + static_cast<size_t>(slot) * static_cast<size_t>(config_.hidden));
      pool_.run(forward);
      s += part.segments;
      slot += part.slot_count;
    }
  } catch (...) {  // out of memory while preparing, or forked: the pass itself does not throw
    tree.truncate(before);
    for (const Grown& g : workspace_->grown) tree.resize(g.node, g.before);
    throw;
  }
}

void Model::truncate(Tree& tree, int nodes) {
  pool_.check_process();
  std::lock_guard<std::mutex> lock(mutex_);
  if (nodes < 1) throw std::invalid_argument("a tree keeps at least its root");
  tree.truncate(nodes);
}

}  // namespace aegis

// A small decoder with random weights, kept in logical form too so that a test can compute what it should give.
#pragma once

#include <memory>

#include "model/model.h"
#include "support.h"

namespace aegis::test {

// Logical weights [n, k] in any of the stored forms; value() is what they stand for.
struct TinyLinear {
  Scheme scheme;
  int n, k, group;
  RowOrder order;
  std::vector<int8_t> int8;
  std::vector<uint8_t> nibbles, group_scale;
  std::vector<uint16_t> bf16;
  std::vector<float> scale, bias;

  TinyLinear(Random& random, Scheme scheme_, int n_, int k_, bool biased, RowOrder order_ = RowOrder::kPlain)
      : scheme(scheme_), n(n_), k(k_), group(k_ % 32 == 0 ? 32 : 16), order(order_) {
    // A variance of 1 / k keeps the hidden state's size from layer to layer; 73 is the deviation of -127..127.
    const float deviation = 1.0f / std::sqrt(static_cast<float>(k));
    const size_t size = sz(n) * sz(k);
    for (int i = 0; i < n; ++i) scale.push_back(deviation / 73.0f * random.uniform(0.7f, 1.3f));
    if (scheme == Scheme::kInt8)
      for (size_t i = 0; i < size; ++i) int8.push_back(static_cast<int8_t>(random.integer(-127, 127)));
    if (scheme == Scheme::kBf16) bf16 = random_bf16(random, size, 1.73f * deviation);
    if (scheme == Scheme::kInt4) {
      nibbles.resize(size / 2);
      for (uint8_t& x : nibbles) {  // two statements: operands of | may be drawn in either order
        const int low = random.integer(1, 15);
        x = static_cast<uint8_t>(low | random.integer(1, 15) << 4);
      }
      for (size_t i = 0; i < size / sz(group); ++i) group_scale.push_back(static_cast<uint8_t>(random.integer(9, 18)));
    }
    if (biased) bias = random_floats(random, sz(n), 0.2f);
  }

  double value(int row, int column) const {
    const size_t i = sz(row) * sz(k) + sz(column);
    if (scheme == Scheme::kBf16) return from_bf16(bf16[i]);
    if (scheme == Scheme::kInt8) return double{scale[sz(row)]} * int8[i];
    return double{scale[sz(row)]} * ((nibbles[i / 2] >> (i % 2 * 4) & 15) - 8) * group_scale[i / sz(group)];
  }

  // Rows [first, first + rows) into `to`.
  void pack(Linear& to, int first, int rows, const Kernels& kernels) const {
    const size_t at = sz(first) * sz(k);
    if (scheme == Scheme::kInt8) to.pack_int8(int8.data() + at, scale.data() + first, rows, k, order, kernels);
    if (scheme == Scheme::kBf16) to.pack_bf16(bf16.data() + at, rows, k, order);
    if (scheme == Scheme::kInt4)
      to.pack_int4(nibbles.data() + at / 2, group_scale.data() + at / sz(group), scale.data() + first, rows, k, group,
                   order, kernels);
    if (!bias.empty()) to.set_bias(bias.data() + first, order);
  }
};

struct TinyLayer {
  TinyLinear qkv, o, gate_up, down;
  std::vector<float> input_norm, post_norm;
  std::vector<float> q_norm, k_norm, attention_out_norm, mlp_out_norm;  // where the config has them
};

inline Config tiny_config() {
  Config c;
  c.layers = 2, c.hidden = 80, c.heads = 6, c.kv_heads = 2, c.head_dim = 32, c.intermediate = 96, c.vocab = 61;
  c.context = 128, c.rows = 3, c.hadamard_block = 32;
  // Powers of two: no libm function whose last bit may differ between platforms.
  for (int i = 0; i < c.head_dim / 2; ++i) c.inverse_frequency.push_back(std::ldexp(1.0f, -i));
  return c;
}

class TinyModel {
 public:
  explicit TinyModel(Scheme scheme, Config config = tiny_config(), uint64_t seed = 41) : config_(std::move(config)) {
    Random random(seed);
    const Config& c = config_;
    const bool folded = scheme != Scheme::kBf16;  // as the exporter does it: norms stay apart in bf16 alone
    const auto norm = [&] {
      auto w = random_floats(random, folded ? 0 : sz(c.hidden), 0.5f);
      for (float& x : w) x += 1.0f;
      return w;
    };
    embedding_ = random_bf16(random, sz(c.vocab) * sz(c.hidden), 1.0f);
    for (int i = 0; i < c.layers; ++i) {
      TinyLinear qkv(random, scheme, c.q_size() + 2 * c.kv_size(), c.hidden, i % 2 == 1);
      TinyLinear o(random, scheme, c.hidden, c.q_size(), false);
      TinyLinear gate_up(random, scheme, 2 * c.intermediate, c.hidden, false, RowOrder::kGateUp);
      TinyLinear down(random, scheme, c.hidden, c.intermediate, i % 2 == 0);
      layers_.push_back(
          {std::move(qkv), std::move(o), std::move(gate_up), std::move(down), norm(), norm(), {}, {}, {}, {}});
    }
    final_norm_ = norm();
    const auto of = [&](bool has, int width) {
      auto w = random_floats(random, has ? sz(width) : 0, 0.5f);
      for (float& x : w) x += 1.0f;
      return w;
    };
    for (TinyLayer& l : layers_) {
      l.q_norm = of(c.qk_norm, c.head_dim), l.k_norm = of(c.qk_norm, c.head_dim);
      l.attention_out_norm = of(c.out_norms, c.hidden), l.mlp_out_norm = of(c.out_norms, c.hidden);
    }
    head_ = random_floats(random, sz(c.rows) * sz(c.hidden), 0.2f);
    head_bias_ = random_floats(random, sz(c.rows), 0.5f);
  }

  const Config& config() const { return config_; }
  void reconfigure(Config config) { config_ = std::move(config); }  // with the same weights
  const std::vector<TinyLayer>& layers() const { return layers_; }
  const std::vector<float>& final_norm() const { return final_norm_; }
  const std::vector<float>& head() const { return head_; }
  const std::vector<float>& head_bias() const { return head_bias_; }
  std::vector<uint16_t>& embedding() { return embedding_; }
  const std::vector<uint16_t>& embedding() const { return embedding_; }

  // For the instruction set that AEGIS_EDGE_ISA names, else the best. Refers to this object's embedding.
  std::unique_ptr<Model> build(int threads) const {
    auto model = std::make_unique<Model>(config_, threads);
    const Kernels& kernels = model->kernels();
    const int q = config_.q_size(), kv = 2 * config_.kv_size();
    for (int i = 0; i < config_.layers; ++i) {
      const TinyLayer& l = layers_[sz(i)];
      l.qkv.pack(model->linear(i, "q"), 0, q, kernels);
      l.qkv.pack(model->linear(i, "kv"), q, kv, kernels);
      l.o.pack(model->linear(i, "o"), 0, l.o.n, kernels);
      l.gate_up.pack(model->linear(i, "gate_up"), 0, l.gate_up.n, kernels);
      l.down.pack(model->linear(i, "down"), 0, l.down.n, kernels);
      model->layer(i).input_norm = l.input_norm;
      model->layer(i).post_norm = l.post_norm;
      model->layer(i).q_norm = l.q_norm;
      model->layer(i).k_norm = l.k_norm;
      model->layer(i).attention_out_norm = l.attention_out_norm;
      model->layer(i).mlp_out_norm = l.mlp_out_norm;
    }
    model->final_norm() = final_norm_;
    model->set_embedding(embedding_.data());
    model->set_head(head_.data(), head_bias_.data());
    model->check_complete();
    return model;
  }

 private:
  Config config_;
  std::vector<uint16_t> embedding_;
  std::vector<TinyLayer> layers_;
  std::vector<float> final_norm_, head_, head_bias_;
};

inline constexpr Scheme kSchemes[] = {Scheme::kInt8, Scheme::kInt4, Scheme::kBf16};
inline const char* name_of(Scheme s) { return s == Scheme::kInt8 ? "int8" : s == Scheme::kInt4 ? "int4" : "bf16"; }

struct Segment {
  std::vector<int32_t> ids;
  int parent;
  std::vector<int> slots;
  int room = 0, kept = -1;
};

inline std::vector<int32_t> random_ids(Random& random, int n, int vocab) {
  std::vector<int32_t> ids;
  for (int i = 0; i < n; ++i) ids.push_back(random.integer(0, vocab - 1));
  return ids;
}

// Tokens [begin, end) of ids.
inline std::vector<int32_t> piece(const std::vector<int32_t>& ids, int begin, int end) {
  return {ids.begin() + begin, ids.begin() + end};
}

// Logits [slots, rows] in one pass.
inline std::vector<float> extend(Model& model, Tree& tree, const std::vector<Segment>& segments,
                                 std::vector<float>* hidden = nullptr) {
  std::vector<int32_t> ids, offsets{0}, parents, slots, kept, room;
  for (const Segment& s : segments) {
    kept.push_back(s.kept);
    room.push_back(s.room);
    for (int slot : s.slots) slots.push_back(static_cast<int32_t>(ids.size()) + slot);
    ids.insert(ids.end(), s.ids.begin(), s.ids.end());
    offsets.push_back(static_cast<int32_t>(ids.size()));
    parents.push_back(s.parent);
  }
  std::vector<float> logits(slots.size() * sz(model.config().rows));
  if (hidden != nullptr) hidden->resize(slots.size() * sz(model.config().hidden));
  model.extend(tree,
               {ids.data(), offsets.data(), parents.data(), static_cast<int>(segments.size()), slots.data(),
                static_cast<int>(slots.size()), false, kept.data(), room.data()},
               logits.data(), hidden == nullptr ? nullptr : hidden->data());
  return logits;
}

// A policy's root as node 1 under an empty node 0.
inline void extend_root(Model& model, Tree& tree, const std::vector<int32_t>& ids) {
  const int32_t offsets[] = {0, static_cast<int32_t>(ids.size())}, parents[] = {0};
  model.extend(tree, {ids.data(), offsets, parents, 1, nullptr, 0, true}, nullptr, nullptr);
}

}  // namespace aegis::test

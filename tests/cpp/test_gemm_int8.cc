// int8 GEMM against integer arithmetic, every bit of it: odd shapes, every epilogue, part ranges, extreme values.
#include "gemm_case.h"
#include "model/linear.h"

using namespace aegis;
using namespace aegis::test;

namespace {

struct Int8Case {
  int rows, n, k;
  std::vector<int8_t> a, weight;  // logical: [rows, k], [n, k]
  std::vector<float> a_scale, b_scale, bias;

  Int8Case(Random& random, int rows_, int n_, int k_, bool extreme = false)
      : rows(rows_), n(n_), k(k_), a(sz(rows_) * sz(k_)), weight(sz(n_) * sz(k_)) {
    const auto value = [&] {
      return static_cast<int8_t>(extreme ? (random.bits() & 1 ? 127 : -127) : random.integer(-127, 127));
    };
    for (int8_t& x : a) x = value();
    for (int8_t& x : weight) x = value();
    for (int i = 0; i < rows; ++i) a_scale.push_back(random.uniform(0.001f, 0.02f));
    for (int i = 0; i < panels(n) * kPanel; ++i) {  // zeros beyond n, as Linear packs them
      b_scale.push_back(i < n ? random.uniform(0.0001f, 0.002f) : 0.0f);
      bias.push_back(i < n ? random.uniform(-2.0f, 2.0f) : 0.0f);
    }
  }

  std::vector<uint8_t> activations(const Kernels& kernels) const {
    std::vector<uint8_t> stored;
    for (int8_t x : a) stored.push_back(static_cast<uint8_t>(x + kernels.activation_offset));
    return stored;
  }

  // What the epilogue receives, f32 [rows, n].
  std::vector<float> values() const {
    std::vector<float> out;
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < n; ++c) {
        int32_t sum = 0;
        for (int i = 0; i < k; ++i) sum += int32_t{a[sz(r) * sz(k) + sz(i)]} * int32_t{weight[sz(c) * sz(k) + sz(i)]};
        out.push_back(static_cast<float>(sum) * b_scale[sz(c)] * a_scale[sz(r)]);
      }
    return out;
  }

  std::vector<int32_t> init(const Kernels& kernels) const {
    std::vector<int32_t> out(b_scale.size());
    for (int c = 0; c < n; ++c)
      for (int i = 0; i < k; ++i) out[sz(c)] -= kernels.activation_offset * weight[sz(c) * sz(k) + sz(i)];
    return out;
  }
};

// The first `count` values, then all of them: rows behind second digits that are the same numbers.
template <class T>
std::vector<T> led_by(size_t count, const std::vector<T>& all) {
  std::vector<T> out(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count));
  out.insert(out.end(), all.begin(), all.end());
  return out;
}

struct Run {
  Epilogue epilogue = Epilogue::kStore;
  bool bias = false;
  int begin = 0, end = 1 << 20;  // half panels
  int spare = 0;                 // floats between the rows of out
};

// The kernel's output, and that every float around it kept its value.
void check(const Kernels& kernels, const Int8Case& c, const std::vector<float>& values, const Run& run) {
  about("%s rows=%d n=%d k=%d %s bias=%d halves=%d..%d", kernels.name, c.rows, c.n, c.k, name_of(run.epilogue),
        run.bias, run.begin, run.end);
  const size_t width = sz(is_gated(run.epilogue) ? c.n / 2 : c.n), stride = width + sz(run.spare);
  std::vector<float> wanted(stride * sz(c.rows + 1));
  Random random(7);
  for (float& x : wanted) x = random.uniform(-3.0f, 3.0f);
  std::vector<float> got = wanted;
  const float* bias = run.bias ? c.bias.data() : nullptr;
  const int end = std::min(run.end, (c.n + 31) / 32);
  finish(values, c.rows, c.n, bias, run.epilogue, run.begin, end, stride, wanted);

  const auto a = c.activations(kernels);
  const auto b = pack(c.weight, c.n, c.k, kernels.int8_depth);
  const auto init = c.init(kernels);
  Gemm g{};
  g.a = a.data(), g.a_scale = c.a_scale.data();
  g.b = b.data(), g.b_scale = c.b_scale.data(), g.b_init = init.data(), g.bias = bias;
  g.out = got.data(), g.out_stride = stride;
  g.rows = c.rows, g.k = c.k, g.columns = c.n, g.begin = run.begin, g.end = end, g.epilogue = run.epilogue;
  kernels.gemm_int8(g);
  CHECK(same_bits(got, wanted));
}

bool fits(Epilogue e, int n) { return !is_gated(e) || n % 32 == 0; }

}  // namespace

TEST(every_number_of_rows) {
  Random random(1);
  for (int rows = 1; rows <= 40; ++rows) {
    const Int8Case c(random, rows, 96, 48);
    const auto values = c.values();
    for_each_isa([&](const Kernels& k) {
      for (Epilogue e : kEpilogues) check(k, c, values, {e, rows % 2 == 0});
    });
  }
}

TEST(odd_shapes) {
  Random random(2);
  for (int n : {16, 32, 48, 64, 80, 112, 128, 144, 176})
    for (int depth : {16, 32, 80, 192})
      for (int rows : {1, 7, 13}) {
        const Int8Case c(random, rows, n, depth);
        const auto values = c.values();
        for_each_isa([&](const Kernels& k) {
          for (Epilogue e : kEpilogues)
            if (fits(e, n)) check(k, c, values, {e, true, 0, 1 << 20, 5});
        });
      }
}

TEST(every_range_of_half_panels) {
  Random random(3);
  const Int8Case c(random, 7, 160, 32);
  const auto values = c.values();
  for_each_isa([&](const Kernels& k) {
    for (int begin = 0; begin <= 5; ++begin)
      for (int end = begin; end <= 5; ++end)
        for (Epilogue e : kEpilogues) check(k, c, values, {e, false, begin, end, 16});
  });
}

// More rows than a block of A that stays in L2 holds: 512 KB / 16384 = 32.
TEST(rows_in_several_blocks) {
  Random random(4);
  const Int8Case c(random, 37, 32, 16384);
  const auto values = c.values();
  for_each_isa([&](const Kernels& k) {
    for (Epilogue e : kEpilogues) check(k, c, values, {e, true});
  });
}

// +-127 everywhere: pairs of products saturate where a kernel sums them in 16 bits.
TEST(extreme_values) {
  Random random(5);
  for (int depth : {16, 64, 14336}) {
    Int8Case random_signs(random, 3, 32, depth, true);
    const auto values = random_signs.values();
    for_each_isa([&](const Kernels& k) { check(k, random_signs, values, {}); });
    for (int signs = 0; signs < 4; ++signs) {  // the largest sums of either sign
      Int8Case c(random, 2, 16, depth);
      for (int8_t& x : c.a) x = signs & 1 ? 127 : -127;
      for (int8_t& x : c.weight) x = signs & 2 ? 127 : -127;
      const auto largest = c.values();
      CHECK(std::fabs(largest[0]) > 0.0f);
      for_each_isa([&](const Kernels& k) { check(k, c, largest, {}); });
    }
  }
}

// Second digits are multiplied once, though the rows that add them come in several blocks.
TEST(second_digits_of_rows_in_several_blocks) {
  Random random(9);
  Int8Case c(random, 37, 32, 16384);
  auto values = c.values();
  const auto digits = values;
  for (int r = 0; r < 37; ++r)
    for (int column = 0; column < 32; ++column) values[sz(r * 32 + column)] += digits[sz((36 - r) * 32 + column)];
  for_each_isa([&](const Kernels& k) {
    about("%s", k.name);
    Linear linear;
    linear.pack_int8(c.weight.data(), c.b_scale.data(), 32, c.k, RowOrder::kPlain, k);
    const auto a = led_by(37 * sz(c.k), c.activations(k));
    const auto scale = led_by(37, c.a_scale);
    std::vector<int32_t> low_of;
    for (int r = 0; r < 37; ++r) low_of.push_back(36 - r);
    std::vector<float> low_out(37 * 64), got(values.size());
    linear.run(k, {a.data(), scale.data(), 37, 37, low_of.data()}, got.data(), 32, Epilogue::kStore, 0, 1, nullptr,
               nullptr, low_out.data());
    CHECK(same_bits(got, values));
  });
}

// The comparison sees one weight that is off by one.
TEST(one_wrong_weight_is_seen) {
  Random random(6);
  Int8Case c(random, 4, 48, 64);
  const auto before = c.values();
  c.weight[sz(17 * 64 + 33)] = static_cast<int8_t>(c.weight[sz(17 * 64 + 33)] ^ 1);
  const auto after = c.values();
  for (int r = 0; r < c.rows; ++r)
    for (int column = 0; column < c.n; ++column) {
      const size_t i = sz(r) * sz(c.n) + sz(column);
      if (column != 17)
        CHECK(same_bits(before[i], after[i]));
      else
        CHECK(c.a[sz(r) * 64 + 33] == 0 || !same_bits(before[i], after[i]));
    }
}

// Linear packs, orders and biases logical weights; int4 unpacks to the int8 it stands for.
TEST(linear_layers) {
  Random random(8);
  for (int n : {32, 96, 160, 224})
    for (RowOrder order : {RowOrder::kPlain, RowOrder::kGateUp})
      for (bool int4 : {false, true})
        for (int group : {8, 16, 32, 64}) {
          if (!int4 && group != 32) continue;
          const int depth = 128, rows = 9, groups = depth / group;
          Int8Case c(random, rows, n, depth);
          std::vector<uint8_t> nibbles(sz(n) * sz(depth) / 2), group_scale(sz(n) * sz(groups));
          if (int4) {
            for (uint8_t& x : group_scale) x = static_cast<uint8_t>(random.integer(1, 18));
            for (size_t i = 0; i < c.weight.size(); ++i) {
              const int nibble = random.integer(1, 15);
              nibbles[i / 2] = static_cast<uint8_t>(nibbles[i / 2] | nibble << (i % 2 * 4));
              const size_t row = i / sz(depth), column = i % sz(depth);
              c.weight[i] = static_cast<int8_t>((nibble - 8) * group_scale[row * sz(groups) + column / sz(group)]);
            }
          }
          // Logical columns in the order the epilogue sees them: 16 of gate, the 16 of up beside them.
          const auto values = c.values();
          std::vector<float> ordered = values, bias(c.bias);
          if (order == RowOrder::kGateUp)
            for (int column = 0; column < n; ++column) {
              const int source = column / 32 * 16 + column % 16 + (column % 32 < 16 ? 0 : n / 2);
              for (int r = 0; r < rows; ++r) ordered[sz(r * n + column)] = values[sz(r * n + source)];
              bias[sz(column)] = c.bias[sz(source)];
            }
          // Second digits for every third row.
          Int8Case digits = c;
          digits.rows = rows / 3;
          std::vector<int32_t> low_of(rows, -1);
          for (int r = 0; r < digits.rows; ++r) low_of[sz(3 * r + 1)] = digits.rows - 1 - r;
          std::vector<float> with_low = ordered;
          const auto low_values = digits.values();
          for (int r = 0; r < rows; ++r)
            for (int column = 0; column < n && low_of[sz(r)] >= 0; ++column) {
              const int source =
                  order == RowOrder::kPlain ? column : column / 32 * 16 + column % 16 + (column % 32 < 16 ? 0 : n / 2);
              with_low[sz(r * n + column)] += low_values[sz(low_of[sz(r)] * n + source)];
            }
          for_each_isa([&](const Kernels& k) {
            about("%s linear n=%d order=%d int4=%d group=%d", k.name, n, int(order), int4, group);
            Linear linear;
            if (int4)
              linear.pack_int4(nibbles.data(), group_scale.data(), c.b_scale.data(), n, depth, group, order, k);
            else
              linear.pack_int8(c.weight.data(), c.b_scale.data(), n, depth, order, k);
            linear.set_bias(c.bias.data(), order);
            CHECK(linear.int8_input() && linear.n() == n && linear.k() == depth);
            const auto a = c.activations(k);
            std::vector<int8_t> scratch(sz(depth) * kPanel);
            std::vector<float> low_out(sz(digits.rows) * sz(linear.padded()));
            const auto both = led_by(sz(digits.rows) * sz(depth), a);
            const auto scales = led_by(sz(digits.rows), c.a_scale);
            const Inputs one{a.data(), c.a_scale.data(), rows};
            const Inputs two{both.data(), scales.data(), rows, digits.rows, low_of.data()};
            for (Epilogue e : kEpilogues)
              for (const Inputs* in : {&one, &two}) {
                const size_t width = sz(is_gated(e) ? n / 2 : n);
                std::vector<float> wanted(width * sz(rows), 1.5f), got = wanted;
                finish(in == &two ? with_low : ordered, rows, n, bias.data(), e, 0, linear.half_panels(), width,
                       wanted);
                // In two parts, as two threads would: the cut falls inside a panel where there is more than one.
                const int cut = linear.half_panels() / 2 | 1;
                const int parts[] = {0, cut < linear.half_panels() ? cut : linear.half_panels(), linear.half_panels()};
                for (int p = 0; p < 2; ++p)
                  linear.run(k, *in, got.data(), width, e, parts[p], parts[p + 1], nullptr, scratch.data(),
                             low_out.data());
                CHECK(same_bits(got, wanted));
              }
          });
        }
}

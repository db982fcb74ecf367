// bf16 GEMM: bit for bit against a chain of fused multiply-adds where a set promises that, else within its rounding.
#include "gemm_case.h"
#include "model/linear.h"

using namespace aegis;
using namespace aegis::test;

namespace {

struct Bf16Case {
  int rows, n, k;
  std::vector<uint16_t> a, weight;
  std::vector<float> bias;

  Bf16Case(Random& random, int rows_, int n_, int k_)
      : rows(rows_),
        n(n_),
        k(k_),
        a(random_bf16(random, sz(rows_) * sz(k_), 2.0f)),
        weight(random_bf16(random, sz(n_) * sz(k_), 0.5f)),
        bias(random_floats(random, sz(panels(n_)) * kPanel, 1.0f)) {}

  // One fp32 accumulator, one rounding a product: what the exact sets compute.
  std::vector<float> chained() const {
    std::vector<float> out;
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < n; ++c) {
        float sum = 0.0f;
        for (int i = 0; i < k; ++i)
          sum = std::fma(from_bf16(a[sz(r) * sz(k) + sz(i)]), from_bf16(weight[sz(c) * sz(k) + sz(i)]), sum);
        out.push_back(sum);
      }
    return out;
  }

  // Products of two bf16 are exact in fp32; k additions in any order err by at most about k * 2^-24 * sum |a b|
  // (Higham, Accuracy and Stability, 4.2). Twice that for instructions that truncate instead of rounding.
  void compare(const std::vector<float>& got) const {
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < n; ++c) {
        double sum = 0.0, magnitude = 0.0;
        for (int i = 0; i < k; ++i) {
          const double p = double{from_bf16(a[sz(r) * sz(k) + sz(i)])} * from_bf16(weight[sz(c) * sz(k) + sz(i)]);
          sum += p;
          magnitude += std::fabs(p);
        }
        CHECK(std::fabs(got[sz(r) * sz(n) + sz(c)] - sum) <= (k + 1) * 0x1p-23 * magnitude);
      }
  }
};

std::vector<float> multiply(const Kernels& kernels, const Bf16Case& c, Epilogue epilogue, const float* bias, int begin,
                            int end, std::vector<float> out) {
  const auto b = pack(c.weight, c.n, c.k, 2);
  Gemm g{};
  g.a = c.a.data(), g.b = b.data(), g.bias = bias;
  g.out = out.data(), g.out_stride = sz(is_gated(epilogue) ? c.n / 2 : c.n);
  g.rows = c.rows, g.k = c.k, g.columns = c.n, g.begin = begin, g.end = end, g.epilogue = epilogue;
  kernels.gemm_bf16(g);
  return out;
}

void check_case(const Bf16Case& c) {
  const auto chained = c.chained();
  const int halves = (c.n + 31) / 32;
  for_each_isa([&](const Kernels& k) {
    about("%s rows=%d n=%d k=%d", k.name, c.rows, c.n, c.k);
    const auto product = multiply(k, c, Epilogue::kStore, nullptr, 0, halves, std::vector<float>(chained.size()));
    if (exact_bf16(k)) CHECK(same_bits(product, chained));
    c.compare(product);
    // The epilogues, given the set's own products, are exact again.
    for (Epilogue e : kEpilogues) {
      if (is_gated(e) && c.n % 32 != 0) continue;
      const size_t width = sz(is_gated(e) ? c.n / 2 : c.n);
      const std::vector<float> start(width * sz(c.rows), 0.75f);
      std::vector<float> wanted = start;
      const int begin = halves > 2 ? 1 : 0;
      finish(product, c.rows, c.n, c.bias.data(), e, begin, halves, width, wanted);
      about("%s rows=%d n=%d k=%d %s", k.name, c.rows, c.n, c.k, name_of(e));
      CHECK(same_bits(multiply(k, c, e, c.bias.data(), begin, halves, start), wanted));
    }
  });
}

}  // namespace

TEST(every_number_of_rows) {
  Random random(11);
  for (int rows = 1; rows <= 40; ++rows) check_case(Bf16Case(random, rows, 48, 32));
}

TEST(odd_shapes) {
  Random random(12);
  for (int n : {16, 32, 80, 112, 160})
    for (int depth : {16, 48, 208})
      for (int rows : {1, 8}) check_case(Bf16Case(random, rows, n, depth));
}

// 512 KB of A, two bytes a value: 32 rows of 8192.
TEST(rows_in_several_blocks) {
  Random random(13);
  check_case(Bf16Case(random, 34, 16, 8192));
}

TEST(infinities_and_nans_reach_the_output) {
  Random random(14);
  for (float poison : {INFINITY, NAN}) {
    Bf16Case c(random, 3, 32, 32);
    c.a[sz(32 + 5)] = to_bf16(poison);  // row 1
    for_each_isa([&](const Kernels& k) {
      about("%s", k.name);
      const auto out = multiply(k, c, Epilogue::kStore, nullptr, 0, 1, std::vector<float>(96));
      for (int i = 0; i < 96; ++i) CHECK(std::isfinite(out[sz(i)]) == (i / 32 != 1));
    });
  }
}

TEST(linear_layer) {
  Random random(15);
  for (RowOrder order : {RowOrder::kPlain, RowOrder::kGateUp}) {
    const Bf16Case c(random, 5, 96, 64);
    Linear linear;
    linear.pack_bf16(c.weight.data(), c.n, c.k, order);
    linear.set_bias(c.bias.data(), order);
    CHECK(!linear.int8_input());
    for_each_isa([&](const Kernels& k) {
      about("%s order=%d", k.name, int(order));
      const auto plain = multiply(k, c, Epilogue::kStore, c.bias.data(), 0, 3, std::vector<float>(sz(c.rows * c.n)));
      std::vector<float> got(plain.size());
      linear.run(k, {c.a.data(), nullptr, c.rows}, got.data(), sz(c.n), Epilogue::kStore, 0, 3, nullptr, nullptr,
                 nullptr);
      for (int r = 0; r < c.rows; ++r)
        for (int column = 0; column < c.n; ++column) {
          const int source =
              order == RowOrder::kPlain ? column : column / 32 * 16 + column % 16 + (column % 32 < 16 ? 0 : c.n / 2);
          CHECK(same_bits(got[sz(r * c.n + column)], plain[sz(r * c.n + source)]));
        }
    });
  }
}

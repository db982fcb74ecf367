// Operators on one row: norm, quantise, Hadamard, rotary, bf16, dot, SiLU; and the same bits from every set.
#include "gemm_case.h"

using namespace aegis;
using namespace aegis::test;

namespace {

// Runs `f(kernels)` for every set; all must return the scalar set's bits.
template <class F>
void same_on_every_isa(const F& f) {
  const auto scalar = f(kernels_scalar());
  for_each_isa([&](const Kernels& k) {
    about("%s", k.name);
    CHECK(same_bits(f(k), scalar));
  });
}

struct Quantised {
  std::vector<int> values;  // without the offset
  float scale;
};

template <class F>
Quantised quantised(const Kernels& kernels, int n, const F& f) {
  std::vector<uint8_t> bytes(sz(n) + 1, 0x5a);
  Quantised q{{}, -1.0f};
  f(bytes.data(), &q.scale);
  CHECK(bytes[sz(n)] == 0x5a);
  for (int i = 0; i < n; ++i)
    q.values.push_back(kernels.activation_offset == 0 ? static_cast<int8_t>(bytes[sz(i)])
                                                      : bytes[sz(i)] - kernels.activation_offset);
  return q;
}

Quantised quantise(const Kernels& k, const std::vector<float>& x) {
  const int n = static_cast<int>(x.size());
  return quantised(k, n, [&](uint8_t* out, float* scale) { k.quantise(x.data(), n, out, scale, nullptr); });
}

// y within half a step of what q stands for (and a few roundings of the largest), and all of the range is used.
void check_steps(const Quantised& q, const std::vector<double>& y) {
  int largest = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    CHECK(std::fabs(q.values[i] * double{q.scale} - y[i]) <= q.scale * (0.5 + 127 * 0x1p-20));
    largest = std::max(largest, std::abs(q.values[i]));
  }
  CHECK(largest == 127);
}

std::vector<double> double_norm(const std::vector<float>& x, const float* weight, double eps) {
  double squares = 0.0;
  for (float v : x) squares += double{v} * v;
  const double factor = 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  std::vector<double> y;
  for (size_t i = 0; i < x.size(); ++i) y.push_back(x[i] * factor * (weight == nullptr ? 1.0 : weight[i]));
  return y;
}

}  // namespace

TEST(norm) {
  Random random(21);
  for (int n : {16, 48, 576, 2048})
    for (bool weighted : {false, true}) {
      // The weighted rows are so small that eps counts.
      const auto x = random_floats(random, sz(n), weighted ? 0.003f : 30.0f),
                 weights = random_floats(random, sz(n), 2.0f);
      const float* weight = weighted ? weights.data() : nullptr;
      const auto wanted = double_norm(x, weight, 1e-5);
      for_each_isa([&](const Kernels& k) {
        about("%s n=%d weighted=%d", k.name, n, weighted);
        std::vector<float> out(sz(n)), reference(sz(n));
        k.norm(x.data(), weight, n, 1e-5f, out.data());
        kernels_scalar().norm(x.data(), weight, n, 1e-5f, reference.data());
        CHECK(same_bits(out, reference));
        // A sum of n squares in 16 lanes, a root, a quotient and two products: some (n / 16 + 8) / 2 roundings.
        for (size_t i = 0; i < wanted.size(); ++i)
          CHECK(std::fabs(out[i] - wanted[i]) <= (n / 32 + 6) * 0x1p-24 * std::fabs(wanted[i]) + 1e-38);
        std::vector<float> sum(sz(n), 0.75f);
        k.norm_add(x.data(), weight, n, 1e-5f, sum.data());
        for (size_t i = 0; i < wanted.size(); ++i) CHECK(same_bits(sum[i], 0.75f + out[i]));
        std::vector<uint16_t> rounded(sz(n));
        k.norm_bf16(x.data(), weight, n, 1e-5f, rounded.data());
        for (size_t i = 0; i < wanted.size(); ++i) CHECK(rounded[i] == to_bf16(out[i]));
        const auto q = quantised(k, n, [&](uint8_t* bytes, float* scale) {
          k.norm_int8(x.data(), weight, n, 1e-5f, bytes, scale, nullptr);
        });
        check_steps(q, wanted);
        const auto& scalar = kernels_scalar();
        const auto same = quantised(scalar, n, [&](uint8_t* bytes, float* scale) {
          scalar.norm_int8(x.data(), weight, n, 1e-5f, bytes, scale, nullptr);
        });
        CHECK(q.values == same.values && same_bits(q.scale, same.scale));
      });
    }
}

TEST(quantise_finite_rows) {
  Random random(22);
  for (int n : {16, 64, 1536})
    for (float limit : {1e-30f, 1e-3f, 1.0f, 1e4f, 1e37f}) {
      const auto x = random_floats(random, sz(n), limit);
      const std::vector<double> y(x.begin(), x.end());
      const auto scalar = quantise(kernels_scalar(), x);
      for_each_isa([&](const Kernels& k) {
        about("%s n=%d limit=%g", k.name, n, double{limit});
        const auto q = quantise(k, x);
        check_steps(q, y);
        CHECK(q.values == scalar.values && same_bits(q.scale, scalar.scale));
        auto negated = x;
        for (float& v : negated) v = -v;
        const auto mirrored = quantise(k, negated);
        for (size_t i = 0; i < x.size(); ++i) CHECK(mirrored.values[i] == -q.values[i]);
      });
    }
}

// Halves round to even: with the largest at 127 the scale is 1 and the values are the steps.
TEST(quantise_rounds_ties_to_even) {
  std::vector<float> x;
  for (int i = 0; i < 63; ++i) x.push_back(static_cast<float>(i) - 31.5f);
  x.push_back(127.0f);
  for_each_isa([&](const Kernels& k) {
    about("%s", k.name);
    const auto q = quantise(k, x);
    CHECK(q.scale == 1.0f);
    for (int i = 0; i < 63; ++i) CHECK(q.values[sz(i)] == static_cast<int>(std::nearbyint(i - 31.5)));
  });
}

TEST(quantise_poison_and_zeros) {
  Random random(23);
  for_each_isa([&](const Kernels& k) {
    for (float poison : {NAN, -NAN, INFINITY, -INFINITY})
      for (int place = 0; place < 48; ++place) {
        about("%s %g at %d", k.name, double{poison}, place);
        auto x = random_floats(random, 48, 1.0f);
        x[sz(place)] = poison;
        CHECK(std::isnan(quantise(k, x).scale));
        float scale = 0.0f;
        std::vector<uint8_t> bytes(48);
        k.norm_int8(x.data(), nullptr, 48, 1e-5f, bytes.data(), &scale, nullptr);
        CHECK(std::isnan(scale));
      }
    about("%s zeros", k.name);
    for (float zero : {0.0f, -0.0f}) CHECK(quantise(k, std::vector<float>(32, zero)).scale == 0.0f);
  });
}

// A row whose largest is so small that 127 / largest is not finite: its scale is as small, its values stay in range
// and are the same on every set.
// Two digits stand for x to within half of the finer steps, from every operator that quantises; the first digit and
// the scale are those of a row that has one.
TEST(second_digits) {
  Random random(29);
  for (int n : {16, 64, 1536}) {
    const auto x = random_floats(random, sz(n), 5.0f), weights = random_floats(random, sz(n), 2.0f);
    const auto normed = double_norm(x, weights.data(), 1e-5);
    for_each_isa([&](const Kernels& k) {
      about("%s n=%d", k.name, n);
      std::vector<float> scratch(sz(n));
      std::vector<double> turned(sz(n));
      k.hadamard(x.data(), n, 16, scratch.data());
      for (int i = 0; i < n; ++i) turned[sz(i)] = scratch[sz(i)];
      const auto check_digits = [&](const std::vector<double>& y, const auto& f) {
        std::vector<uint8_t> low(sz(n));
        const auto one = quantised(k, n, [&](uint8_t* out, float* scale) { f(out, scale, nullptr); });
        const auto two = quantised(k, n, [&](uint8_t* out, float* scale) { f(out, scale, low.data()); });
        CHECK(one.values == two.values && same_bits(one.scale, two.scale));
        double worst_of_one = 0.0;
        for (int i = 0; i < n; ++i) {
          const int digit =
              k.activation_offset == 0 ? static_cast<int8_t>(low[sz(i)]) : low[sz(i)] - k.activation_offset;
          const double first = two.values[sz(i)] * double{two.scale};
          CHECK(std::fabs(first + digit * double{two.scale / kLowSteps} - y[sz(i)]) <=
                two.scale * (0.51 / kLowSteps + 127 * 0x1p-20));
          worst_of_one = std::max(worst_of_one, std::fabs(first - y[sz(i)]));
        }
        CHECK(n < 64 || worst_of_one > two.scale * 0.2);  // what the second digit is for
      };
      check_digits(std::vector<double>(x.begin(), x.end()),
                   [&](uint8_t* out, float* scale, uint8_t* low) { k.quantise(x.data(), n, out, scale, low); });
      check_digits(normed, [&](uint8_t* out, float* scale, uint8_t* low) {
        k.norm_int8(x.data(), weights.data(), n, 1e-5f, out, scale, low);
      });
      check_digits(turned, [&](uint8_t* out, float* scale, uint8_t* low) {
        k.hadamard_int8(x.data(), n, 16, scratch.data(), out, scale, low);
      });
    });
  }
}

TEST(quantise_denormal_rows) {
  for (float largest : {0x1p-149f, 1e-42f, 1e-38f, 3e-37f, 1e-36f}) {
    std::vector<float> x(32, 0.0f);
    x[3] = largest;
    x[20] = -largest;
    const auto scalar = quantise(kernels_scalar(), x);
    for_each_isa([&](const Kernels& k) {
      about("%s largest=%g", k.name, double{largest});
      const auto q = quantise(k, x);
      CHECK(q.scale >= 0.0f && q.scale <= largest);
      CHECK(q.values == scalar.values && same_bits(q.scale, scalar.scale));
    });
  }
}

TEST(hadamard) {
  Random random(24);
  for (int block = 16; block <= 1024; block *= 2) {
    const int n = 3 * block;
    const auto x = random_floats(random, sz(n), 4.0f);
    std::vector<double> wanted(sz(n));
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < block; ++j)
        wanted[sz(i)] +=
            (__builtin_popcount(unsigned(i % block & j)) % 2 == 0 ? 1 : -1) * double{x[sz(i / block * block + j)]};
      wanted[sz(i)] /= std::sqrt(static_cast<double>(block));
    }
    for_each_isa([&](const Kernels& k) {
      about("%s block=%d", k.name, block);
      std::vector<float> y(sz(n)), back(sz(n)), scalar(sz(n));
      k.hadamard(x.data(), n, block, y.data());
      k.hadamard(y.data(), n, block, back.data());
      kernels_scalar().hadamard(x.data(), n, block, scalar.data());
      CHECK(same_bits(y, scalar));
      for (size_t i = 0; i < wanted.size(); ++i) {
        CHECK(std::fabs(y[i] - wanted[i]) <= 1e-5);  // ten additions of values up to 4 * sqrt(1024)
        CHECK(std::fabs(back[i] - x[i]) <= 1e-5f);   // symmetric and orthogonal: its own inverse
      }
      std::vector<float> scratch(sz(n));
      const auto q = quantised(k, n, [&](uint8_t* bytes, float* scale) {
        k.hadamard_int8(x.data(), n, block, scratch.data(), bytes, scale, nullptr);
      });
      check_steps(q, wanted);
    });
  }
}

TEST(rope) {
  Random random(25);
  for (int d : {16, 32, 48, 64, 80, 96, 128, 256}) {
    const auto x = random_floats(random, sz(d), 5.0f);
    std::vector<float> cos, sin;
    for (int i = 0; i < d / 2; ++i) {
      const double angle = 1234.0 * std::pow(10000.0, -2.0 * i / d);
      cos.push_back(static_cast<float>(std::cos(angle)));
      sin.push_back(static_cast<float>(std::sin(angle)));
    }
    same_on_every_isa([&](const Kernels& k) {
      std::vector<uint16_t> out(sz(d));
      k.rope(x.data(), d, cos.data(), sin.data(), 0.125f, out.data());
      for (int i = 0; i < d / 2; ++i) {
        const double a = x[sz(i)], b = x[sz(d / 2 + i)], c = cos[sz(i)], s = sin[sz(i)];
        const double first = 0.125 * (a * c - b * s), second = 0.125 * (b * c + a * s);
        // Half a step of bf16, and fp32 roundings of the products, which may cancel.
        CHECK(std::fabs(from_bf16(out[sz(i)]) - first) <= 0x1p-8 * std::fabs(first) + 1e-6);
        CHECK(std::fabs(from_bf16(out[sz(d / 2 + i)]) - second) <= 0x1p-8 * std::fabs(second) + 1e-6);
      }
      return out;
    });
  }
}

// Every bf16 widens exactly; every float near a tie rounds to the even neighbour, NaN stays NaN. Sets with bf16
// instructions may flush denormals.
TEST(bf16_rounding) {
  for_each_isa([&](const Kernels& k) {
    about("%s", k.name);
    constexpr int kAll = 1 << 16;
    std::vector<uint16_t> all(kAll), narrowed(kAll);
    for (int i = 0; i < kAll; ++i) all[sz(i)] = static_cast<uint16_t>(i);
    std::vector<float> wide(kAll);
    k.from_bf16(all.data(), kAll, wide.data());
    for (int i = 0; i < kAll; ++i) CHECK(bits_of(wide[sz(i)]) == static_cast<uint32_t>(i) << 16);
    for (uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      std::vector<float> x(kAll);
      for (int i = 0; i < kAll; ++i) x[sz(i)] = float_of(static_cast<uint32_t>(i) << 16 | low);
      k.to_bf16(x.data(), kAll, narrowed.data());
      for (int i = 0; i < kAll; ++i) {
        const bool denormal = std::fabs(x[sz(i)]) < 0x1p-126f, flushed = (narrowed[sz(i)] & 0x7fff) == 0;
        if (std::isnan(x[sz(i)]))
          CHECK(std::isnan(from_bf16(narrowed[sz(i)])));
        else
          CHECK(narrowed[sz(i)] == to_bf16(x[sz(i)]) || (denormal && flushed && !exact_bf16(k)));
      }
    }
  });
}

TEST(dot) {
  Random random(26);
  for (int n : {16, 576, 2048}) {
    const auto a = random_floats(random, sz(n), 1.0f), b = random_floats(random, sz(n), 1.0f);
    double wanted = 0.0, magnitude = 0.0;
    for (int i = 0; i < n; ++i) {
      wanted += double{a[sz(i)]} * b[sz(i)];
      magnitude += std::fabs(double{a[sz(i)]} * b[sz(i)]);
    }
    same_on_every_isa([&](const Kernels& k) {
      const std::vector<float> got{k.dot(a.data(), b.data(), n)};
      CHECK(std::fabs(got[0] - wanted) <= (n / 16 + 5) * 0x1p-24 * magnitude);
      return got;
    });
  }
}

// exp within two ulp over its range, the exp2 of attention within its polynomial's error, and silu within its own, and
// what rounding its exponent makes of it: read through the GEMM's epilogue, with a product of zero and the argument as
// bias.
TEST(exp_and_silu) {
  for (float x = -86.9f; x < 88.0f; x += 0.0137f) {
    const double got = Math<Scalar>::exp(Scalar::set1(x)).v[0], wanted = std::exp(double{x});
    CHECK(std::fabs(got - wanted) <= 2.5e-7 * wanted);
  }
  for (float x : {-87.5f, -1e4f, -INFINITY}) CHECK(Math<Scalar>::exp(Scalar::set1(x)).v[0] == 0.0f);
  CHECK(Math<Scalar>::exp(Scalar::zero()).v[0] == 1.0f);

  for (float t = -126.0f; t <= 0.0f; t += 0.0137f) {
    const double got = Math<Scalar>::exp2_bf16(Scalar::set1(t)).v[0], wanted = std::exp2(double{t});
    CHECK(std::fabs(got - wanted) <= 7.6e-5 * wanted);
  }
  for (float t : {-300.0f, -1e30f}) CHECK(Math<Scalar>::exp2_bf16(Scalar::set1(t)).v[0] == 0.0f);
  CHECK(std::isnan(Math<Scalar>::exp2_bf16(Scalar::set1(NAN)).v[0]));

  std::vector<float> x{0.0f, 1.0f, 100.0f, -100.0f, 1e30f, -1e30f, 0x1p-130f, NAN};
  for (int i = -1000; x.size() % 16 != 0 || i <= 1000; ++i) x.push_back(static_cast<float>(i) * 0.0301f);
  const int n = static_cast<int>(2 * x.size()), padded = panels(n) * kPanel;
  const std::vector<uint8_t> a(16);
  const std::vector<int8_t> b(sz(padded) * 16);
  const std::vector<float> scale(sz(padded), 1.0f);
  const std::vector<int32_t> init(sz(padded));
  std::vector<float> bias(sz(padded));
  for (int c = 0; c < n; ++c) bias[sz(c)] = c % 32 < 16 ? x[sz(c / 32 * 16 + c % 16)] : 1.0f;
  for_each_isa([&](const Kernels& k) {
    std::vector<float> out(x.size());
    Gemm g{a.data(),      scale.data(),       b.data(), scale.data(), init.data(), bias.data(),
           out.data(),    x.size(),           1,        16,           n,           0,
           (n + 31) / 32, Epilogue::kSiluMul, nullptr};
    k.gemm_int8(g);
    for (size_t i = 0; i < x.size(); ++i) {
      about("%s silu(%g)", k.name, double{x[i]});
      const double wanted = x[i] / (1.0 + std::exp(-double{x[i]}));
      if (std::isnan(x[i]))
        CHECK(std::isnan(out[i]));
      else if (x[i] > -87.0f)
        CHECK(std::fabs(out[i] - wanted) <= (3.2e-6 + 0x1p-24 * std::fabs(x[i])) * std::fabs(wanted));
      else
        CHECK(std::fabs(out[i]) <= 1e-8f * std::fabs(x[i]));
      if (!std::isnan(x[i])) CHECK(same_bits(out[i], scalar_silu(x[i])));
    }
    g.epilogue = Epilogue::kGeluMul;
    k.gemm_int8(g);
    for (size_t i = 0; i < x.size(); ++i) {
      about("%s gelu(%g)", k.name, double{x[i]});
      const double v = x[i], u = 0.7978845608028654 * (v + 0.044715 * v * v * v);
      if (std::isnan(x[i]))
        CHECK(std::isnan(out[i]));
      else if (std::fabs(v) < 1e6)  // beyond, the cube is no float
        CHECK(std::fabs(out[i] - v / (1.0 + std::exp(-2.0 * u))) <=
              5e-6 * std::fabs(v / (1.0 + std::exp(-2.0 * u))) + 1e-30);
      if (!std::isnan(x[i])) CHECK(same_bits(out[i], scalar_gelu(x[i])));
    }
  });
}

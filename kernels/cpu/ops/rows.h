// Operators on one row: norm, quantise, Hadamard, rotary. Written once over sixteen lanes.
#pragma once

#include "isa/kernels.h"

namespace aegis {
namespace {

template <class V>
struct Rows {
  using F = typename V::F;

  static float inverse_rms(const float* x, int n, float eps) {
    F squares = V::zero();
    for (int i = 0; i < n; i += 16) {
      const F v = V::load(x + i);
      squares = V::fma(v, v, squares);
    }
    const float mean = V::sum(squares) / static_cast<float>(n) + eps;
    return 1.0f / __builtin_sqrtf(mean);
  }

  static F scaled(const float* x, const float* weight, int i, F factor) {
    const F v = V::mul(V::load(x + i), factor);
    return weight == nullptr ? v : V::mul(v, V::load(weight + i));
  }

  static void norm(const float* x, const float* weight, int n, float eps, float* out) {
    const F factor = V::set1(inverse_rms(x, n, eps));
    for (int i = 0; i < n; i += 16) V::store(out + i, scaled(x, weight, i, factor));
  }

  static void norm_add(const float* y, const float* weight, int n, float eps, float* x) {
    const F factor = V::set1(inverse_rms(y, n, eps));
    for (int i = 0; i < n; i += 16) V::store(x + i, V::add(V::load(x + i), scaled(y, weight, i, factor)));
  }

  static void norm_bf16(const float* x, const float* weight, int n, float eps, uint16_t* out) {
    const F factor = V::set1(inverse_rms(x, n, eps));
    for (int i = 0; i < n; i += 16) V::store_bf16(out + i, scaled(x, weight, i, factor));
  }

  // The norm's factor cancels in x / max|x|, so the row is quantised as it is and only the scale carries it.
  static void norm_int8(const float* x, const float* weight, int n, float eps, uint8_t* out, float* scale,
                        uint8_t* low) {
    const float factor = inverse_rms(x, n, eps);
    quantise_weighted(x, weight, n, out, scale, low);
    *scale *= factor;
  }

  static void quantise(const float* x, int n, uint8_t* out, float* scale, uint8_t* low) {
    quantise_weighted(x, nullptr, n, out, scale, low);
  }

  static void quantise_weighted(const float* x, const float* weight, int n, uint8_t* out, float* scale, uint8_t* low) {
    F largest = V::zero();
    F poison = V::zero();  // 0 * x: stays 0 for finite x, NaN otherwise; max alone may drop a NaN
    const F one = V::set1(1.0f), zero = V::zero();
    for (int i = 0; i < n; i += 16) {
      const F v = scaled(x, weight, i, one);
      largest = V::max(largest, V::abs(v));
      poison = V::fma(v, zero, poison);
    }
    const float bound = V::max_lane(largest);
    *scale = bound / 127.0f + V::sum(poison);
    // A row of zeros keeps scale 0: every product with it is 0, whatever the bytes are. Below 2^-100 a row counts as
    // zeros too: under 2^-121 the quotient is infinite, which each instruction set converts its own way.
    const F factor = V::set1(bound >= 0x1p-100f ? 127.0f / bound : 0.0f);
    for (int i = 0; i < n; i += 16) V::store_int8(out + i, V::mul(scaled(x, weight, i, one), factor));
    if (low == nullptr) return;
    // What rounding left over is within half a step: 254 of the finer steps span it. Adding and taking away 1.5 * 2^23
    // rounds a float to an integer, half to even, as store_int8 does.
    const F steps = V::set1(kLowSteps), magic = V::set1(12582912.0f);
    for (int i = 0; i < n; i += 16) {
      const F v = V::mul(scaled(x, weight, i, one), factor);
      V::store_int8(low + i, V::mul(V::sub(v, V::sub(V::add(v, magic), magic)), steps));
    }
  }

  static void to_bf16(const float* x, int n, uint16_t* out) {
    for (int i = 0; i < n; i += 16) V::store_bf16(out + i, V::load(x + i));
  }

  static void from_bf16(const uint16_t* x, int n, float* out) {
    for (int i = 0; i < n; i += 16) V::store(out + i, V::from_bf16(x + i));
  }

  // Walsh-Hadamard transform of one block, out = H x in Sylvester order, not normalised. The levels of width 1 to 8
  // stay inside a vector: x +- its neighbour is one shuffle and one fma with signs. The wider ones run across vectors:
  // three levels on what was just loaded where there are so many, then two levels at a time.
  static void transform(const float* x, int block, float* out) {
    int width = 16;
    if (block >= 128) {
      for (int i = 0; i < block; i += 128) transform128(x + i, out + i);
      width = 128;
    } else {
      for (int i = 0; i < block; i += 16) V::store(out + i, transform16(V::load(x + i)));
    }
    for (; width * 2 < block; width *= 4)
      for (int i = 0; i < block; i += 4 * width)
        for (int j = i; j < i + width; j += 16) {
          const F a = V::load(out + j), b = V::load(out + j + width);
          const F c = V::load(out + j + 2 * width), d = V::load(out + j + 3 * width);
          const F ab = V::add(a, b), amb = V::sub(a, b), cd = V::add(c, d), cmd = V::sub(c, d);
          V::store(out + j, V::add(ab, cd));
          V::store(out + j + width, V::add(amb, cmd));
          V::store(out + j + 2 * width, V::sub(ab, cd));
          V::store(out + j + 3 * width, V::sub(amb, cmd));
        }
    for (; width < block; width *= 2)
      for (int i = 0; i < block; i += 2 * width)
        for (int j = i; j < i + width; j += 16) {
          const F a = V::load(out + j), b = V::load(out + j + width);
          V::store(out + j, V::add(a, b));
          V::store(out + j + width, V::sub(a, b));
        }
  }

  static void transform128(const float* x, float* out) {
    F v[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) v[i] = transform16(V::load(x + 16 * i));
#pragma GCC unroll 3
    for (int step = 1; step < 8; step *= 2)
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i)
        if ((i & step) == 0) {
          const F a = v[i], b = v[i + step];
          v[i] = V::add(a, b);
          v[i + step] = V::sub(a, b);
        }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) V::store(out + 16 * i, v[i]);
  }

  static F transform16(F a) {
    a = level<1>(a);
    a = level<2>(a);
    a = level<4>(a);
    return level<8>(a);
  }

  template <int Width>
  static F level(F a) {
    struct Signs {
      float v[16];
      constexpr Signs() : v{} {
        for (int i = 0; i < 16; ++i) v[i] = (i & Width) != 0 ? -1.0f : 1.0f;
      }
    };
    static constexpr Signs signs;
    return V::fma(a, V::load(signs.v), V::template swap<Width>(a));
  }

  static void hadamard(const float* x, int n, int block, float* out) {
    for (int i = 0; i < n; i += block) transform(x + i, block, out + i);
    const F norm = V::set1(1.0f / __builtin_sqrtf(static_cast<float>(block)));
    for (int i = 0; i < n; i += 16) V::store(out + i, V::mul(V::load(out + i), norm));
  }

  // Quantising does not see a factor that all of the row shares: 1 / sqrt(block) goes into the scale.
  static void hadamard_int8(const float* x, int n, int block, float* scratch, uint8_t* out, float* scale,
                            uint8_t* low) {
    for (int i = 0; i < n; i += block) transform(x + i, block, scratch + i);
    quantise(scratch, n, out, scale, low);
    *scale *= 1.0f / __builtin_sqrtf(static_cast<float>(block));
  }

  static void rope(const float* x, int d, const float* cos, const float* sin, float scale, uint16_t* out) {
    const int half = d / 2;
    const F s = V::set1(scale);
    if (half % 16 == 0) {
      for (int i = 0; i < half; i += 16) {
        const F a = V::load(x + i), b = V::load(x + half + i), c = V::load(cos + i), n = V::load(sin + i);
        V::store_bf16(out + i, V::mul(V::sub(V::mul(a, c), V::mul(b, n)), s));
        V::store_bf16(out + half + i, V::mul(V::add(V::mul(b, c), V::mul(a, n)), s));
      }
      return;
    }
    float y[kMaxHead];  // heads of 16, 48, 80: a vector holds some of both halves
    for (int i = 0; i < half; ++i) {
      y[i] = (x[i] * cos[i] - x[half + i] * sin[i]) * scale;
      y[half + i] = (x[half + i] * cos[i] + x[i] * sin[i]) * scale;
    }
    for (int i = 0; i < d; i += 16) V::store_bf16(out + i, V::load(y + i));
  }

  static float dot(const float* a, const float* b, int n) {
    F acc = V::zero();
    for (int i = 0; i < n; i += 16) acc = V::fma(V::load(a + i), V::load(b + i), acc);
    return V::sum(acc);
  }
};

}  // namespace
}  // namespace aegis

// Primitives of the portable instruction set: sixteen lanes in plain C++.
//
// Every instruction set is a struct with the same members over *sixteen* lanes, whatever its register
// width (one zmm, two ymm, four q registers, an array here). The operators in ops/ are written once over
// these lanes, so float reductions have the same order, and the same bits, on every instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace aegis {
namespace {

struct Scalar {
  struct F {
    float v[16];
  };
  struct I {
    int32_t v[16];
  };

  // Activations are signed bytes. Sets with an unsigned x signed dot product store them with +128.
  static constexpr int kActivationOffset = 0;
  // Values of K that stand together in a packed int8 panel: 4, or 8 where a set multiplies pairs of rows (Int8Pairs).
  static constexpr int kInt8Depth = 4;
  // Accumulator tile of a GEMM, rows x 16-lane vectors. Nothing to gain here: no register file to fill.
  static constexpr int kTileRows = 4;
  static constexpr int kTileVectors = 2;

  static F zero() { return set1(0.0f); }
  static F set1(float x) {
    F r;
    for (float& lane : r.v) lane = x;
    return r;
  }
  static F load(const float* p) {
    F r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static void store(float* p, F a) { std::memcpy(p, a.v, sizeof a.v); }

  template <class Op>
  static F map(F a, F b, Op op) {
    for (int i = 0; i < 16; ++i) a.v[i] = op(a.v[i], b.v[i]);
    return a;
  }
  static F add(F a, F b) {
    return map(a, b, [](float x, float y) { return x + y; });
  }
  static F sub(F a, F b) {
    return map(a, b, [](float x, float y) { return x - y; });
  }
  static F mul(F a, F b) {
    return map(a, b, [](float x, float y) { return x * y; });
  }
  static F div(F a, F b) {
    return map(a, b, [](float x, float y) { return x / y; });
  }
  static F max(F a, F b) {
    return map(a, b, [](float x, float y) { return x > y ? x : y; });
  }
  static F min(F a, F b) {
    return map(a, b, [](float x, float y) { return x < y ? x : y; });
  }
  static F abs(F a) {
    for (float& lane : a.v) lane = std::fabs(lane);
    return a;
  }
  static F fma(F a, F b, F c) {
    for (int i = 0; i < 16; ++i) c.v[i] = std::fma(a.v[i], b.v[i], c.v[i]);
    return c;
  }
  // value where x >= limit, 0 elsewhere (and where x is NaN).
  static F keep_ge(F value, F x, F limit) {
    for (int i = 0; i < 16; ++i) value.v[i] = x.v[i] >= limit.v[i] ? value.v[i] : 0.0f;
    return value;
  }
  // The first n lanes of a, `other` in the rest.
  static F first(F a, int n, F other) {
    for (int i = 0; i < 16; ++i) a.v[i] = i < n ? a.v[i] : other.v[i];
    return a;
  }
  static F round(F a) {
    for (float& lane : a.v) lane = std::nearbyintf(lane);
    return a;
  }
  // x * 2^n for integral n up to 127 and x near one. Below n = -126 what an instruction set makes of it, and 0 for n
  // far below.
  static F scale(F x, F n) {
    for (int i = 0; i < 16; ++i) {
      const float limited = n.v[i] > -127.0f ? n.v[i] : -127.0f;
      const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(limited) + 127) << 23;
      float power;
      std::memcpy(&power, &bits, 4);
      x.v[i] *= power;
    }
    return x;
  }
  // Lanes i and i ^ Width change places.
  template <int Width>
  static F swap(F a) {
    F r;
    for (int i = 0; i < 16; ++i) r.v[i] = a.v[i ^ Width];
    return r;
  }
  // The order of the tree is the same on every instruction set: halves, quarters, ...
  static float sum(F a) {
    for (int width = 8; width >= 1; width /= 2)
      for (int i = 0; i < width; ++i) a.v[i] += a.v[i + width];
    return a.v[0];
  }
  static float max_lane(F a) {
    for (int i = 1; i < 16; ++i) a.v[0] = a.v[i] > a.v[0] ? a.v[i] : a.v[0];
    return a.v[0];
  }

  static F from_bf16(const uint16_t* p) {
    F r;
    for (int i = 0; i < 16; ++i) {
      const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
      std::memcpy(&r.v[i], &bits, 4);
    }
    return r;
  }
  static uint16_t bf16(float x) {  // round to nearest even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
  static void store_bf16(uint16_t* p, F a) {
    for (int i = 0; i < 16; ++i) p[i] = bf16(a.v[i]);
  }
  // Rounds to nearest even, saturates to [-127, 127], adds the activation offset, stores 16 bytes.
  static auto store2_bf16(uint16_t* p, F a, F b) {
    store_bf16(p, a);
    store_bf16(p + 16, b);
    return load2(p);
  }
  static void store_int8(uint8_t* p, F a) {
    for (int i = 0; i < 16; ++i) {
      float x = std::nearbyintf(a.v[i]);
      x = x > -127.0f ? x : -127.0f;  // also sends NaN to -127: its row's scale is NaN already
      x = x < 127.0f ? x : 127.0f;
      p[i] = static_cast<uint8_t>(static_cast<int8_t>(static_cast<int32_t>(x)));
    }
  }

  static I load_i32(const int32_t* p) {
    I r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static F to_float(I a) {
    F r;
    for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(a.v[i]);
    return r;
  }

  // Dot products of four bytes a lane: acc[i] += sum_j a[j] * b[4 i + j]; a is broadcast.
  struct A4 {
    int8_t v[4];
  };
  struct B4 {
    const int8_t* p;
  };
  static A4 broadcast4(const uint8_t* p) {
    A4 r;
    std::memcpy(r.v, p, 4);
    return r;
  }
  static B4 load4(const int8_t* p) { return {p}; }
  static void hide(A4& a) { asm volatile("" : "+m"(a.v)); }  // the compiler no longer knows its value
  static void dot4(I& acc, A4 a, B4 b) {
    for (int i = 0; i < 16; ++i) {
      int32_t s = 0;
      for (int j = 0; j < 4; ++j) s += int32_t{a.v[j]} * int32_t{b.p[4 * i + j]};
      acc.v[i] += s;
    }
  }

  // Dot products of two bf16 a lane, accumulated in fp32 one after the other.
  struct A2 {
    float v[2];
  };
  struct B2 {
    const uint16_t* p;
  };
  static A2 broadcast2(const uint16_t* p) {
    A2 r;
    for (int j = 0; j < 2; ++j) {
      const uint32_t bits = static_cast<uint32_t>(p[j]) << 16;
      std::memcpy(&r.v[j], &bits, 4);
    }
    return r;
  }
  static B2 load2(const uint16_t* p) { return {p}; }
  static void dot2(F& acc, A2 a, B2 b) {
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 2; ++j) {
        const uint32_t bits = static_cast<uint32_t>(b.p[2 * i + j]) << 16;
        float y;
        std::memcpy(&y, &bits, 4);
        acc.v[i] = std::fma(a.v[j], y, acc.v[i]);
      }
  }

  static void prefetch(const void*) {}
};

}  // namespace
}  // namespace aegis

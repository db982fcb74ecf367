// Primitives of ARMv8.2 NEON with the dot-product extension: sixteen lanes are four q registers.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace aegis {
namespace {

struct Neon {
  struct F {
    float32x4_t a, b, c, d;
  };
  struct I {
    int32x4_t a, b, c, d;
  };

  // sdot multiplies signed by signed bytes.
  static constexpr int kActivationOffset = 0;
  static constexpr int kInt8Depth = 4;
  // 2 x 2 x 4 q = 16 accumulators of 32 registers; a row of B takes 8, A and what bf16 unpacks to the rest. sdot:
  // latency 3 to 4, two to four a cycle, so 16 keep all of the units busy. Three rows spill.
  static constexpr int kTileRows = 2;
  static constexpr int kTileVectors = 2;

  static F zero() { return set1(0.0f); }
  static F set1(float x) {
    const float32x4_t v = vdupq_n_f32(x);
    return {v, v, v, v};
  }
  static F load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
  static void store(float* p, F x) {
    vst1q_f32(p, x.a);
    vst1q_f32(p + 4, x.b);
    vst1q_f32(p + 8, x.c);
    vst1q_f32(p + 12, x.d);
  }
  static F add(F x, F y) {
    return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b), vaddq_f32(x.c, y.c), vaddq_f32(x.d, y.d)};
  }
  static F sub(F x, F y) {
    return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b), vsubq_f32(x.c, y.c), vsubq_f32(x.d, y.d)};
  }
  static F mul(F x, F y) {
    return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b), vmulq_f32(x.c, y.c), vmulq_f32(x.d, y.d)};
  }
  static F div(F x, F y) {
    return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b), vdivq_f32(x.c, y.c), vdivq_f32(x.d, y.d)};
  }
  static F max(F x, F y) {
    return {vmaxq_f32(x.a, y.a), vmaxq_f32(x.b, y.b), vmaxq_f32(x.c, y.c), vmaxq_f32(x.d, y.d)};
  }
  static F min(F x, F y) {
    return {vminq_f32(x.a, y.a), vminq_f32(x.b, y.b), vminq_f32(x.c, y.c), vminq_f32(x.d, y.d)};
  }
  static F abs(F x) { return {vabsq_f32(x.a), vabsq_f32(x.b), vabsq_f32(x.c), vabsq_f32(x.d)}; }
  static F fma(F x, F y, F z) {
    return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c), vfmaq_f32(z.d, x.d, y.d)};
  }
  static F keep_ge(F value, F x, F limit) {
    return {keep(vcgeq_f32(x.a, limit.a), value.a), keep(vcgeq_f32(x.b, limit.b), value.b),
            keep(vcgeq_f32(x.c, limit.c), value.c), keep(vcgeq_f32(x.d, limit.d), value.d)};
  }
  static F first(F x, int n, F other) {  // n may be negative or beyond 16
    return {select(n, x.a, other.a), select(n - 4, x.b, other.b), select(n - 8, x.c, other.c),
            select(n - 12, x.d, other.d)};
  }
  static F round(F x) { return {vrndnq_f32(x.a), vrndnq_f32(x.b), vrndnq_f32(x.c), vrndnq_f32(x.d)}; }
  static F scale(F x, F n) { return mul(x, {pow2(n.a), pow2(n.b), pow2(n.c), pow2(n.d)}); }
  template <int Width>
  static F swap(F x) {
    if constexpr (Width == 8) return {x.c, x.d, x.a, x.b};
    if constexpr (Width == 4) return {x.b, x.a, x.d, x.c};
    if constexpr (Width == 2)
      return {vextq_f32(x.a, x.a, 2), vextq_f32(x.b, x.b, 2), vextq_f32(x.c, x.c, 2), vextq_f32(x.d, x.d, 2)};
    if constexpr (Width == 1) return {vrev64q_f32(x.a), vrev64q_f32(x.b), vrev64q_f32(x.c), vrev64q_f32(x.d)};
  }
  static float sum(F x) {
    const float32x4_t q = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
    const float32x2_t d = vadd_f32(vget_low_f32(q), vget_high_f32(q));
    return vget_lane_f32(d, 0) + vget_lane_f32(d, 1);
  }
  static float max_lane(F x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.a, x.b), vmaxq_f32(x.c, x.d))); }

  static F from_bf16(const uint16_t* p) { return {widen(p), widen(p + 4), widen(p + 8), widen(p + 12)}; }
  static void store_bf16(uint16_t* p, F x) {
    vst1q_u16(p, vcombine_u16(narrow(x.a), narrow(x.b)));
    vst1q_u16(p + 8, vcombine_u16(narrow(x.c), narrow(x.d)));
  }
  static auto store2_bf16(uint16_t* p, F x, F y) {
    store_bf16(p, x);
    store_bf16(p + 16, y);
    return load2(p);  // loads find what was just stored: of the same 16 bytes
  }
  static void store_int8(uint8_t* p, F x) {
    const int16x8_t lo = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(x.a)), vqmovn_s32(vcvtnq_s32_f32(x.b)));
    const int16x8_t hi = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(x.c)), vqmovn_s32(vcvtnq_s32_f32(x.d)));
    const int8x16_t bytes = vcombine_s8(vqmovn_s16(lo), vqmovn_s16(hi));
    vst1q_u8(p, vreinterpretq_u8_s8(vmaxq_s8(bytes, vdupq_n_s8(-127))));
  }

  static I load_i32(const int32_t* p) { return {vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)}; }
  static F to_float(I x) { return {vcvtq_f32_s32(x.a), vcvtq_f32_s32(x.b), vcvtq_f32_s32(x.c), vcvtq_f32_s32(x.d)}; }

  struct A4 {
    int8x16_t v;
  };
  struct B4 {
    int8x16_t a, b, c, d;
  };
  static A4 broadcast4(const uint8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return {vreinterpretq_s8_s32(vdupq_n_s32(x))};
  }
  static B4 load4(const int8_t* p) { return {vld1q_s8(p), vld1q_s8(p + 16), vld1q_s8(p + 32), vld1q_s8(p + 48)}; }
  static void hide(A4& a) { asm volatile("" : "+w"(a.v)); }
  static void dot4(I& acc, A4 x, B4 y) {
    acc.a = vdotq_s32(acc.a, y.a, x.v);
    acc.b = vdotq_s32(acc.b, y.b, x.v);
    acc.c = vdotq_s32(acc.c, y.c, x.v);
    acc.d = vdotq_s32(acc.d, y.d, x.v);
  }

  // A bf16 is the upper half of a float: two shifts and two FMAs a pair.
  struct A2 {
    float32x4_t lo, hi;
  };
  struct B2 {
    uint32x4_t a, b, c, d;
  };
  static A2 broadcast2(const uint16_t* p) {
    uint32_t x;
    std::memcpy(&x, p, 4);
    const uint32x4_t v = vdupq_n_u32(x);
    return {lower(v), upper(v)};
  }
  static B2 load2(const uint16_t* p) { return {pairs(p), pairs(p + 8), pairs(p + 16), pairs(p + 24)}; }
  static void dot2(F& acc, A2 x, B2 y) {
    acc.a = dot(acc.a, x, y.a);
    acc.b = dot(acc.b, x, y.b);
    acc.c = dot(acc.c, x, y.c);
    acc.d = dot(acc.d, x, y.d);
  }

  static void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

 private:
  static float32x4_t keep(uint32x4_t mask, float32x4_t x) {
    return vreinterpretq_f32_u32(vandq_u32(mask, vreinterpretq_u32_f32(x)));
  }
  static float32x4_t select(int n, float32x4_t x, float32x4_t other) {
    const int32x4_t lane = {0, 1, 2, 3};
    return vbslq_f32(vcgtq_s32(vdupq_n_s32(n), lane), x, other);
  }
  static float32x4_t pow2(float32x4_t n) {  // 0 from -127 down
    const int32x4_t limited = vcvtnq_s32_f32(vmaxq_f32(n, vdupq_n_f32(-127.0f)));
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(limited, vdupq_n_s32(127)), 23));
  }
  static float32x4_t widen(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
  static uint16x4_t narrow(float32x4_t x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t nan = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), rounded, nan), 16);
  }
  static float32x4_t lower(uint32x4_t x) { return vreinterpretq_f32_u32(vshlq_n_u32(x, 16)); }
  static float32x4_t upper(uint32x4_t x) { return vreinterpretq_f32_u32(vandq_u32(x, vdupq_n_u32(0xffff0000u))); }
  static uint32x4_t pairs(const uint16_t* p) { return vreinterpretq_u32_u16(vld1q_u16(p)); }
  static float32x4_t dot(float32x4_t acc, A2 x, uint32x4_t y) {
    return vfmaq_f32(vfmaq_f32(acc, x.lo, lower(y)), x.hi, upper(y));
  }
};

}  // namespace
}  // namespace aegis

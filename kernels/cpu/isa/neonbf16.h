// Primitives of NEON with bf16 instructions, in place of those that neon.h puts together.
#pragma once

#include "isa/neon.h"

namespace aegis {
namespace {

// ARMv8.6 BF16 (Neoverse V1 and N2, Apple M2) replaces the two-FMA bf16 product, and the rounding to bf16, by one
// instruction each. bfdot flushes denormals and rounds the pair its own way: scores agree with the other sets
// within a tolerance, not bit for bit.
struct NeonBf16 : Neon {
  static void store_bf16(uint16_t* p, F x) {
    vst1q_u16(p, vreinterpretq_u16_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(x.a), x.b)));
    vst1q_u16(p + 8, vreinterpretq_u16_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(x.c), x.d)));
  }
  static auto store2_bf16(uint16_t* p, F x, F y) {
    store_bf16(p, x);
    store_bf16(p + 16, y);
    return load2(p);
  }
  struct A2 {
    bfloat16x8_t v;
  };
  static A2 broadcast2(const uint16_t* p) {
    uint32_t x;
    std::memcpy(&x, p, 4);
    return {vreinterpretq_bf16_u32(vdupq_n_u32(x))};
  }
  static void dot2(F& acc, A2 x, B2 y) {
    acc.a = vbfdotq_f32(acc.a, vreinterpretq_bf16_u32(y.a), x.v);
    acc.b = vbfdotq_f32(acc.b, vreinterpretq_bf16_u32(y.b), x.v);
    acc.c = vbfdotq_f32(acc.c, vreinterpretq_bf16_u32(y.c), x.v);
    acc.d = vbfdotq_f32(acc.d, vreinterpretq_bf16_u32(y.d), x.v);
  }
};

}  // namespace
}  // namespace aegis

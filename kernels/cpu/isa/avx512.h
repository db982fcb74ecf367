// Primitives of AVX-512 with VNNI: sixteen lanes are one zmm register.
//
// The dot products are inline assembly on purpose: GCC 12 spills the accumulators of _mm512_dpbusd_epi32
// and _mm512_dpbf16_ps to the stack inside an unrolled tile and loses half of the peak; a "+v" operand
// keeps each accumulator in its register.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace aegis {
namespace {

struct Avx512Vnni {
  struct F {
    __m512 v;
  };
  struct I {
    __m512i v;
  };

  // vpdpbusd multiplies unsigned by signed bytes: activations are stored as value + 128.
  static constexpr int kActivationOffset = 128;
  static constexpr int kInt8Depth = 4;
  // 6 x 4 = 24 accumulators + 4 of B + 1 broadcast of A = 29 of 32 registers. vpdpbusd: latency 4 to 5,
  // one a cycle, so >= 5 accumulators hide the latency and 24 leave 6 + 4 loads in 24 cycles.
  static constexpr int kTileRows = 6;
  static constexpr int kTileVectors = 4;

  static F zero() { return {_mm512_setzero_ps()}; }
  static F set1(float x) { return {_mm512_set1_ps(x)}; }
  static F load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
  static F add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
  static F sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
  static F mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static F div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
  static F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
  static F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
  static F abs(F a) { return {_mm512_abs_ps(a.v)}; }
  static F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static F keep_ge(F value, F x, F limit) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_GE_OQ), value.v)};
  }
  static F first(F a, int n, F other) {  // n may be negative or beyond 16
    const uint32_t mask = n >= 16 ? 0xffffu : n > 0 ? (1u << n) - 1u : 0u;
    return {_mm512_mask_mov_ps(other.v, static_cast<__mmask16>(mask), a.v)};
  }
  static F round(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  static F scale(F x, F n) { return {_mm512_scalef_ps(x.v, n.v)}; }
  template <int Width>
  static F swap(F a) {
    if constexpr (Width == 8) return {_mm512_shuffle_f32x4(a.v, a.v, 0x4e)};
    if constexpr (Width == 4) return {_mm512_shuffle_f32x4(a.v, a.v, 0xb1)};
    if constexpr (Width == 2) return {_mm512_permute_ps(a.v, 0x4e)};
    if constexpr (Width == 1) return {_mm512_permute_ps(a.v, 0xb1)};
  }
  static float sum(F a) {
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), upper(a.v));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
  }
  static float max_lane(F a) { return _mm512_reduce_max_ps(a.v); }

  static F from_bf16(const uint16_t* p) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
  }
  static void store_bf16(uint16_t* p, F a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a)); }
  static I store2_bf16(uint16_t* p, F a, F b) {
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(narrow(a)), narrow(b), 1);
    _mm512_storeu_si512(p, both);
    return {both};
  }
  static __m256i narrow(F a) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, _mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(r);
  }
  static void store_int8(uint8_t* p, F a) {
    __m512i i = _mm512_cvtps_epi32(a.v);
    i = _mm512_max_epi32(i, _mm512_set1_epi32(-127));
    i = _mm512_min_epi32(i, _mm512_set1_epi32(127));
    i = _mm512_add_epi32(i, _mm512_set1_epi32(kActivationOffset));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(i));
  }

  static I load_i32(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
  static F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }

  using A4 = I;
  using B4 = I;
  static A4 broadcast4(const uint8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return {_mm512_set1_epi32(x)};
  }
  static B4 load4(const int8_t* p) { return {_mm512_loadu_si512(p)}; }
  static void hide(A4& a) { asm volatile("" : "+v"(a.v)); }
  static void dot4(I& acc, A4 a, B4 b) { asm("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(a.v), "v"(b.v)); }

  // Without AVX512_BF16: a bf16 is the upper half of a float, so two shifts and two FMAs.
  struct A2 {
    __m512 lo, hi;
  };
  using B2 = I;
  static A2 broadcast2(const uint16_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return {_mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int32_t>(static_cast<uint32_t>(x) << 16))),
            _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int32_t>(static_cast<uint32_t>(x) & 0xffff0000u)))};
  }
  static B2 load2(const uint16_t* p) { return {_mm512_loadu_si512(p)}; }
  static void dot2(F& acc, A2 a, B2 b) {
    const __m512 lo = _mm512_castsi512_ps(_mm512_slli_epi32(b.v, 16));
    const __m512 hi = _mm512_castsi512_ps(_mm512_and_si512(b.v, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u))));
    acc.v = _mm512_fmadd_ps(a.lo, lo, acc.v);
    acc.v = _mm512_fmadd_ps(a.hi, hi, acc.v);
  }

  static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

 private:
  static __m256 upper(__m512 v) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)); }
};

}  // namespace
}  // namespace aegis

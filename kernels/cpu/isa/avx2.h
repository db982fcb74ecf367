// Primitives of AVX2 with FMA: sixteen lanes are two ymm registers.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace aegis {
namespace {

struct Avx2 {
  struct F {
    __m256 a, b;
  };
  struct I {
    __m256i a, b;
  };

  // Signed activations: |a| (<= 127) times sign(b, a) keeps a pair of products within
  // 2 * 127 * 127 = 32258 < 2^15, where vpmaddubsw of a + 128 would saturate.
  static constexpr int kActivationOffset = 0;
  static constexpr int kInt8Depth = 4;
  // 3 x 2 x 2 ymm = 12 accumulators of 16 registers; A, |A| and two temporaries take the rest.
  static constexpr int kTileRows = 3;
  static constexpr int kTileVectors = 2;

  static F zero() { return set1(0.0f); }
  static F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store(float* p, F x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
  }
  static F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  static F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
  static F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
  static F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
  static F abs(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
  }
  static F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
  static F keep_ge(F value, F x, F limit) {
    return {_mm256_and_ps(_mm256_cmp_ps(x.a, limit.a, _CMP_GE_OQ), value.a),
            _mm256_and_ps(_mm256_cmp_ps(x.b, limit.b, _CMP_GE_OQ), value.b)};
  }
  static F first(F x, int n, F other) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i lo = _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
    const __m256i hi = _mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lane);
    return {_mm256_blendv_ps(other.a, x.a, _mm256_castsi256_ps(lo)),
            _mm256_blendv_ps(other.b, x.b, _mm256_castsi256_ps(hi))};
  }
  static F round(F x) {
    constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, kMode), _mm256_round_ps(x.b, kMode)};
  }
  static F scale(F x, F n) { return mul(x, {pow2(n.a), pow2(n.b)}); }
  template <int Width>
  static F swap(F x) {
    if constexpr (Width == 8) return {x.b, x.a};
    if constexpr (Width == 4) return {_mm256_permute2f128_ps(x.a, x.a, 1), _mm256_permute2f128_ps(x.b, x.b, 1)};
    if constexpr (Width == 2) return {_mm256_permute_ps(x.a, 0x4e), _mm256_permute_ps(x.b, 0x4e)};
    if constexpr (Width == 1) return {_mm256_permute_ps(x.a, 0xb1), _mm256_permute_ps(x.b, 0xb1)};
  }
  static float sum(F x) {
    const __m256 h = _mm256_add_ps(x.a, x.b);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
  }
  static float max_lane(F x) {
    const __m256 h = _mm256_max_ps(x.a, x.b);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
  }

  static F from_bf16(const uint16_t* p) { return {widen(p), widen(p + 8)}; }
  static __m256i store_bf16(uint16_t* p, F x) {
    const __m256i r = _mm256_permute4x64_epi64(_mm256_packus_epi32(narrow(x.a), narrow(x.b)), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), r);
    return r;
  }
  static I store2_bf16(uint16_t* p, F x, F y) { return {store_bf16(p, x), store_bf16(p + 16, y)}; }
  static void store_int8(uint8_t* p, F x) {
    const __m256i w = _mm256_packs_epi32(clamp(x.a), clamp(x.b));
    const __m256i o = _mm256_permute4x64_epi64(w, 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi16(_mm256_castsi256_si128(o), _mm256_extracti128_si256(o, 1)));
  }

  static I load_i32(const int32_t* p) { return {load256(p), load256(p + 8)}; }
  static F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }

  struct A4 {
    __m256i value, magnitude;
  };
  using B4 = I;
  static A4 broadcast4(const uint8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    const __m256i v = _mm256_set1_epi32(x);
    return {v, _mm256_abs_epi8(v)};
  }
  static B4 load4(const int8_t* p) { return {load256(p), load256(p + 32)}; }
  static void hide(A4& a) { asm volatile("" : "+x"(a.value), "+x"(a.magnitude)); }
  static void dot4(I& acc, A4 x, B4 y) {
    acc.a = _mm256_add_epi32(acc.a, dot(x, y.a));
    acc.b = _mm256_add_epi32(acc.b, dot(x, y.b));
  }

  struct A2 {
    __m256 lo, hi;
  };
  using B2 = I;
  static A2 broadcast2(const uint16_t* p) {
    const uint32_t lo = static_cast<uint32_t>(p[0]) << 16, hi = static_cast<uint32_t>(p[1]) << 16;
    return {_mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int32_t>(lo))),
            _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int32_t>(hi)))};
  }
  static B2 load2(const uint16_t* p) { return {load256(p), load256(p + 16)}; }
  static void dot2(F& acc, A2 x, B2 y) {
    acc.a = dot(acc.a, x, y.a);
    acc.b = dot(acc.b, x, y.b);
  }

  static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

 private:
  static __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static __m256i dot(A4 x, __m256i y) {
    const __m256i pairs = _mm256_maddubs_epi16(x.magnitude, _mm256_sign_epi8(y, x.value));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  static __m256 dot(__m256 acc, A2 x, __m256i y) {
    const __m256 lo = _mm256_castsi256_ps(_mm256_slli_epi32(y, 16));
    const __m256 hi = _mm256_castsi256_ps(_mm256_and_si256(y, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u))));
    return _mm256_fmadd_ps(x.hi, hi, _mm256_fmadd_ps(x.lo, lo, acc));
  }
  static __m256 pow2(__m256 n) {  // 0 from -127 down
    const __m256 limited = _mm256_max_ps(n, _mm256_set1_ps(-127.0f));
    const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(limited), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
  }
  static __m256 widen(const uint16_t* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  }
  static __m256i narrow(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i r = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i nan = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    return _mm256_blendv_epi8(r, nan, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
  }
  static __m256i clamp(__m256 x) {
    const __m256i i = _mm256_max_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(-127));
    return _mm256_min_epi32(i, _mm256_set1_epi32(127));
  }
};

}  // namespace
}  // namespace aegis

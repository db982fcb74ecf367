#include "isa/avx512.h"
#include "ops/table.h"

namespace aegis {
namespace {

// AVX512_BF16 (Zen 4, Sapphire Rapids, Cooper Lake) replaces the two-FMA bf16 product, and the rounding to bf16, by one
// instruction each. They flush denormals, and vdpbf16ps rounds the pair its own way: scores agree with the other
// sets within a tolerance, not bit for bit.
struct Avx512Bf16 : Avx512Vnni {
  static void store_bf16(uint16_t* p, F a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(a.v));
  }
  static I store2_bf16(uint16_t* p, F a, F b) {
    const auto both = (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v);
    _mm512_storeu_si512(p, both);
    return {both};
  }
  using A2 = I;
  static A2 broadcast2(const uint16_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return {_mm512_set1_epi32(x)};
  }
  static void dot2(F& acc, A2 a, B2 b) { asm("vdpbf16ps %2, %1, %0" : "+v"(acc.v) : "v"(a.v), "v"(b.v)); }
};

}  // namespace

const Kernels& kernels_avx512bf16() {
  static constexpr Kernels table = make_kernels<Avx512Bf16>("avx512bf16");
  return table;
}
}  // namespace aegis

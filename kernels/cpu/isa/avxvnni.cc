#include "isa/avx2.h"
#include "ops/table.h"

namespace aegis {
namespace {

// AVX-VNNI (Alder Lake and later, Zen 5): AVX2 with the int8 dot product of AVX-512 VNNI on ymm registers, which takes
// unsigned activations and replaces four instructions by one.
struct AvxVnni : Avx2 {
  static constexpr int kActivationOffset = 128;
  static void store_int8(uint8_t* p, F x) {
    Avx2::store_int8(p, x);
    const auto at = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(at, _mm_xor_si128(_mm_loadu_si128(at), _mm_set1_epi8(static_cast<char>(kActivationOffset))));
  }
  struct A4 {
    __m256i v;
  };
  static A4 broadcast4(const uint8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return {_mm256_set1_epi32(x)};
  }
  static void hide(A4& a) { asm volatile("" : "+x"(a.v)); }
  // 12 accumulators, 4 of B and 1 of A are one more than there are registers: B may stay in memory. Assembly as in
  // avx512.h; {vex}: the encoding that needs no AVX-512.
  static void dot4(I& acc, A4 a, B4 b) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc.a) : "x"(a.v), "xm"(b.a));
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc.b) : "x"(a.v), "xm"(b.b));
  }
};

}  // namespace

const Kernels& kernels_avxvnni() {
  static constexpr Kernels table = make_kernels<AvxVnni>("avxvnni");
  return table;
}
}  // namespace aegis

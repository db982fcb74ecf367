#include "isa/neonbf16.h"
#include "ops/table.h"

namespace aegis {
namespace {

// ARMv8.6 I8MM (Neoverse V1 and N2, Apple M2): smmla multiplies two rows of 8 bytes by two columns of 8, twice the
// products of sdot in one instruction. The sums are the same integers, everything else is NeonBf16's: the same bits.
struct NeonI8mmBf16 : NeonBf16 {
  static constexpr int kInt8Depth = 8;
  // 3 x 8 q = 24 accumulators of 32 registers; three of A, two to five of B. A step of K: 24 smmla, 8 loads of B, 6 of
  // halves of A and 3 instructions that join them. Four rows would have 16 to 8, 4 and 2.
  static constexpr int kPairTileRows = 6;

  struct Pair {  // two rows by 16 columns: q[j] holds columns 2 j and 2 j + 1 of the first row, then of the second
    int32x4_t q[8];
  };
  static Pair load_pair(const int32_t* p) {  // the same for both rows
    Pair x;
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) x.q[j] = vreinterpretq_s32_s64(vdupq_n_s64(two(p + 2 * j)));
    return x;
  }
  static I first_row(const Pair& x) {
    return {low(x.q[0], x.q[1]), low(x.q[2], x.q[3]), low(x.q[4], x.q[5]), low(x.q[6], x.q[7])};
  }
  static I second_row(const Pair& x) {
    return {high(x.q[0], x.q[1]), high(x.q[2], x.q[3]), high(x.q[4], x.q[5]), high(x.q[6], x.q[7])};
  }

  static int8x16_t load8(const char* p) { return vld1q_s8(reinterpret_cast<const int8_t*>(p)); }
  static int8x16_t load8(const char* first, const char* second) {
    return vcombine_s8(vld1_s8(reinterpret_cast<const int8_t*>(first)),
                       vld1_s8(reinterpret_cast<const int8_t*>(second)));
  }
  // Not the intrinsic, whose accumulators GCC 12 copies to and fro.
  static void dot8(Pair& acc, int j, int8x16_t rows, int8x16_t columns) {
    asm("smmla %0.4s, %1.16b, %2.16b" : "+w"(acc.q[j]) : "w"(rows), "w"(columns));
  }

 private:
  static int64_t two(const int32_t* p) {
    int64_t x;
    std::memcpy(&x, p, 8);
    return x;
  }
  static int32x4_t low(int32x4_t x, int32x4_t y) {
    return vreinterpretq_s32_s64(vzip1q_s64(vreinterpretq_s64_s32(x), vreinterpretq_s64_s32(y)));
  }
  static int32x4_t high(int32x4_t x, int32x4_t y) {
    return vreinterpretq_s32_s64(vzip2q_s64(vreinterpretq_s64_s32(x), vreinterpretq_s64_s32(y)));
  }
};

}  // namespace

const Kernels& kernels_neoni8mmbf16() {
  static constexpr Kernels table = make_kernels<NeonI8mmBf16>("neoni8mmbf16");
  return table;
}
}  // namespace aegis

// int8 dot products from registers alone: what a GEMM could reach at most.
//
// The operands' values are hidden from the compiler: of accumulators that it knows to start alike it would keep one,
// and products of operands that it knows not to change it would take once.
#pragma once

#include <cstdint>

namespace aegis {
namespace {

template <class V>
int64_t peak_int8(int64_t steps) {
  constexpr int kRows = V::kTileRows, kVectors = V::kTileVectors;
  alignas(64) int8_t bytes[64] = {};
  alignas(64) int32_t start[kRows][kVectors][16] = {};
  asm volatile("" : "+m"(bytes), "+m"(start));
  typename V::I acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < kVectors; ++c) acc[r][c] = V::load_i32(start[r][c]);
  auto a = V::broadcast4(reinterpret_cast<const uint8_t*>(bytes));
  const auto b = V::load4(bytes);
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < kVectors; ++c) {
        V::hide(a);
        V::dot4(acc[r][c], a, b);
      }
  }
  float sink = 0.0f;  // keeps the accumulators alive
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < kVectors; ++c) sink += V::sum(V::to_float(acc[r][c]));
  asm volatile("" ::"g"(&sink) : "memory");
  return int64_t{kRows} * kVectors * 64;
}

template <class V>
int64_t peak_int8_pairs(int64_t steps) {
  constexpr int kPairs = V::kPairTileRows / 2;
  alignas(64) char bytes[16] = {};
  alignas(64) int32_t start[kPairs][16] = {};
  asm volatile("" : "+m"(bytes), "+m"(start));
  typename V::Pair acc[kPairs];
#pragma GCC unroll 16
  for (int p = 0; p < kPairs; ++p) acc[p] = V::load_pair(start[p]);
  const auto operand = V::load8(bytes);
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < 8; ++j)
#pragma GCC unroll 16
      for (int p = 0; p < kPairs; ++p) V::dot8(acc[p], j, operand, operand);
  }
  float sink = 0.0f;
#pragma GCC unroll 16
  for (int p = 0; p < kPairs; ++p)
    sink += V::sum(V::to_float(V::first_row(acc[p]))) + V::sum(V::to_float(V::second_row(acc[p])));
  asm volatile("" ::"g"(&sink) : "memory");
  return int64_t{kPairs} * 8 * 32;
}

}  // namespace
}  // namespace aegis

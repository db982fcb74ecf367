// A GEMM on random operands: packs logical weights as kernels.h states it, apart from model/linear.cc.
#pragma once

#include "isa/kernels.h"
#include "isa/scalar.h"
#include "ops/math.h"
#include "support.h"

namespace aegis::test {

inline int panels(int n) { return (n + kPanel - 1) / kPanel; }

// Logical weights [n, k] -> [panels, k / depth, 64, depth], zeros beyond n.
template <class T>
std::vector<T> pack(const std::vector<T>& weight, int n, int k, int depth) {
  std::vector<T> packed(sz(panels(n)) * kPanel * sz(k));
  for (int row = 0; row < n; ++row)
    for (int i = 0; i < k; ++i)
      packed[sz(row / kPanel) * kPanel * sz(k) + (sz(i / depth) * kPanel + sz(row % kPanel)) * sz(depth) +
             sz(i % depth)] = weight[sz(row) * sz(k) + sz(i)];
  return packed;
}

// silu as the scalar set computes it, which every other set promises to match bit for bit.
inline float scalar_silu(float x) { return Math<Scalar>::silu(Scalar::set1(x)).v[0]; }
inline float scalar_gelu(float x) { return Math<Scalar>::gelu(Scalar::set1(x)).v[0]; }

// Finishes values f32 [rows, n] as an epilogue would, into out f32 [rows, stride], for the half panels [begin, end).
inline void finish(const std::vector<float>& values, int rows, int n, const float* bias, Epilogue epilogue, int begin,
                   int end, size_t stride, std::vector<float>& out) {
  const auto value = [&](int r, int c) {
    const float v = values[sz(r) * sz(n) + sz(c)];
    return bias == nullptr ? v : v + bias[c];
  };
  for (int r = 0; r < rows; ++r)
    for (int c = begin * 32; c < n && c < end * 32; ++c) {
      float* row = out.data() + sz(r) * stride;
      if (epilogue == Epilogue::kStore) row[c] = value(r, c);
      if (epilogue == Epilogue::kAdd) row[c] = row[c] + value(r, c);
      if (epilogue == Epilogue::kSiluMul && c % 32 < 16)
        row[c / 32 * 16 + c % 16] = scalar_silu(value(r, c)) * value(r, c + 16);
      if (epilogue == Epilogue::kGeluMul && c % 32 < 16)
        row[c / 32 * 16 + c % 16] = scalar_gelu(value(r, c)) * value(r, c + 16);
    }
}

inline const char* name_of(Epilogue e) {
  return e == Epilogue::kStore     ? "store"
         : e == Epilogue::kAdd     ? "add"
         : e == Epilogue::kSiluMul ? "silu_mul"
                                   : "gelu_mul";
}

inline constexpr Epilogue kEpilogues[] = {Epilogue::kStore, Epilogue::kAdd, Epilogue::kSiluMul, Epilogue::kGeluMul};

}  // namespace aegis::test

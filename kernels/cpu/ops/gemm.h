// GEMM of activations by packed weights, int8 (W8A8, and W4A8 once unpacked) and bf16.
//
// Goal: the peak of the dot-product unit at M >= 32, memory speed below. Non-goals: general strides,
// transposes, K-blocking (a panel of the largest K here, 14,336 x 64 bytes, still streams from L2/L3 while
// the accumulators stay in registers, and int32 holds 14,336 * 255 * 127 = 4.6e8 < 2^31).
//
// A tile is R rows by C vectors of 16 columns; its accumulators live in registers over all of K, so each
// output is one integer sum and one float epilogue: the same bits whatever R, C, the batch and the thread.
#pragma once

#include "isa/kernels.h"
#include "ops/math.h"

namespace aegis {
namespace {

template <class V>
struct Int8Dot {
  using Acc = typename V::I;
  using Byte = uint8_t;
  static constexpr int kDepth = 4;  // values of K a step
  static constexpr size_t kBytesA = 1, kBytesB = 1;
  static Acc init(const Gemm& g, int column) { return V::load_i32(g.b_init + column); }
  static auto broadcast(const char* a) { return V::broadcast4(reinterpret_cast<const uint8_t*>(a)); }
  static auto load(const char* b) { return V::load4(reinterpret_cast<const int8_t*>(b)); }
  template <class A, class B>
  static void dot(Acc& acc, A a, B b) {
    V::dot4(acc, a, b);
  }
  static typename V::F value(const Gemm& g, Acc acc, int row, int column) {
    const auto scaled = V::mul(V::to_float(acc), V::load(g.b_scale + column));
    return V::mul(scaled, V::set1(g.a_scale[row]));
  }
};

template <class V>
struct Bf16Dot {
  using Acc = typename V::F;
  static constexpr int kDepth = 2;
  static constexpr size_t kBytesA = 2, kBytesB = 2;
  static Acc init(const Gemm&, int) { return V::zero(); }
  static auto broadcast(const char* a) { return V::broadcast2(reinterpret_cast<const uint16_t*>(a)); }
  static auto load(const char* b) { return V::load2(reinterpret_cast<const uint16_t*>(b)); }
  template <class A, class B>
  static void dot(Acc& acc, A a, B b) {
    V::dot2(acc, a, b);
  }
  static typename V::F value(const Gemm&, Acc acc, int, int) { return acc; }
};

// Both depths make a step of B 64 columns x 4 bytes, and a step of A 4 bytes.
inline constexpr size_t kStepB = 256, kStepA = 4, kVectorB = 64;

template <class V, class D>
struct GemmOp {
  using F = typename V::F;

  // What the tiles of one panel prefetch of the next: `stride` bytes a step of K, at most two lines (128 bytes) of it,
  // which covers all of it from two tiles (7 rows) on.
  struct Ahead {
    const char* p;
    ptrdiff_t stride;
  };

  template <int R, int C, Epilogue E>
  static void tile(const Gemm& g, const char* a, size_t row_bytes, const char* b, int row, int column, Ahead& ahead) {
    typename D::Acc acc[R][C];
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      const auto start = D::init(g, column + 16 * c);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r][c] = start;
    }
    const char* next = ahead.p;
    for (int k = 0; k < g.k; k += D::kDepth) {
      decltype(D::load(b)) bv[C];
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) bv[c] = D::load(b + kVectorB * static_cast<size_t>(c));
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const auto av = D::broadcast(a + static_cast<size_t>(r) * row_bytes);
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) D::dot(acc[r][c], av, bv[c]);
      }
      V::prefetch(next);
      V::prefetch(next + 64);
      next += ahead.stride;
      a += kStepA;
      b += kStepB;
    }
    ahead.p = next;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const int low = g.low == nullptr ? -1 : g.low_of[row + r] - g.low_first;
      F v[C];
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        v[c] = D::value(g, acc[r][c], row + r, column + 16 * c);
        if (low >= 0)
          v[c] = V::add(v[c], V::load(g.low->out + static_cast<size_t>(low) * g.low->out_stride + column + 16 * c));
        if (g.bias != nullptr) v[c] = V::add(v[c], V::load(g.bias + column + 16 * c));
      }
      float* out = g.out + static_cast<size_t>(row + r) * g.out_stride;
      write<C, E>(g, v, out, column);
    }
  }

  template <int C, Epilogue E>
  static void write(const Gemm& g, F (&v)[C], float* out, int column) {
    if constexpr (is_gated(E)) {
#pragma GCC unroll 16
      for (int c = 0; c < C; c += 2)
        if (column + 16 * c < g.columns) {
          const F gate = E == Epilogue::kSiluMul ? Math<V>::silu(v[c]) : Math<V>::gelu(v[c]);
          V::store(out + column / 2 + 8 * c, V::mul(gate, v[c + 1]));
        }
    } else {
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        if (column + 16 * c >= g.columns) return;  // the padding of the last panel
        float* p = out + column + 16 * c;
        if constexpr (E == Epilogue::kAdd) v[c] = V::add(V::load(p), v[c]);
        V::store(p, v[c]);
      }
    }
  }

  template <int R, Epilogue E>
  static void tile_of_rows(const Gemm& g, int rows, const char* a, size_t row_bytes, const char* b, int row, int column,
                           Ahead& ahead) {
    if constexpr (R > 1) {
      if (rows < R) return tile_of_rows<R - 1, E>(g, rows, a, row_bytes, b, row, column, ahead);
    }
    tile<R, 2, E>(g, a, row_bytes, b, row, column, ahead);
  }
  template <int R, Epilogue E>
  static void wide_tile_of_rows(const Gemm& g, int rows, const char* a, size_t row_bytes, const char* b, int row,
                                int column, Ahead& ahead) {
    if constexpr (R > 1) {
      if (rows < R) return wide_tile_of_rows<R - 1, E>(g, rows, a, row_bytes, b, row, column, ahead);
    }
    tile<R, V::kTileVectors, E>(g, a, row_bytes, b, row, column, ahead);
  }

  // All rows [first, last) by the half panels [begin, end).
  template <Epilogue E>
  static void block(const Gemm& g, int first, int last) {
    const size_t panel_bytes = static_cast<size_t>(g.k) * kPanel * D::kBytesB;
    const int steps = g.k / D::kDepth;
    for (int half = g.begin; half < g.end;) {
      // A full panel where the range and the set's tile allow it, else half of one.
      const bool wide = V::kTileVectors == 4 && half % 2 == 0 && half + 2 <= g.end;
      const char* b = static_cast<const char*>(g.b) + static_cast<size_t>(half / 2) * panel_bytes +
                      static_cast<size_t>(half % 2) * 2 * kVectorB;
      const int column = half * 32;
      half += wide ? 2 : 1;
      // The panel that follows comes from memory or L3: the tiles of this one fetch it into L2, in equal shares.
      const bool more = half < g.end;
      const char* next = more ? static_cast<const char*>(g.b) + static_cast<size_t>(half / 2) * panel_bytes
                              : static_cast<const char*>(g.next);
      const bool fetch = next != nullptr && (!more || half % 2 == 0);
      const ptrdiff_t share =
          static_cast<ptrdiff_t>(panel_bytes) / (static_cast<ptrdiff_t>(steps) * tile_count(last - first));
      // Second digits first, by the first block of rows for all.
      Ahead nothing{b, 0};
      if (g.low != nullptr && first == 0) tiles<Epilogue::kStore>(*g.low, 0, g.low->rows, b, column, wide, nothing);
      Ahead ahead{fetch ? next : b, fetch ? share : 0};
      tiles<E>(g, first, last, b, column, wide, ahead);
    }
  }

  // Rows [first, last) by one panel, or half of one, in tiles of even height: 16 rows are 6 + 5 + 5, not 6 + 6 + 4.
  template <Epilogue E>
  static void tiles(const Gemm& g, int first, int last, const char* b, int column, bool wide, Ahead& ahead) {
    const size_t row_bytes = static_cast<size_t>(g.k) * D::kBytesA;
    const int rows = last - first, count = tile_count(rows);
    for (int t = 0; t < count; ++t) {
      const int top = first + static_cast<int>(static_cast<int64_t>(rows) * t / count);
      const int bottom = first + static_cast<int>(static_cast<int64_t>(rows) * (t + 1) / count);
      const char* a = static_cast<const char*>(g.a) + static_cast<size_t>(top) * row_bytes;
      if (wide)
        wide_tile_of_rows<V::kTileRows, E>(g, bottom - top, a, row_bytes, b, top, column, ahead);
      else
        tile_of_rows<V::kTileRows, E>(g, bottom - top, a, row_bytes, b, top, column, ahead);
    }
  }

  static int tile_count(int rows) { return (rows + V::kTileRows - 1) / V::kTileRows; }

  static void run(const Gemm& g) {
    // Rows in blocks whose A stays in L2 (1 MB on the machines at hand) beside a panel of B.
    const int fit = static_cast<int>((512u << 10) / (static_cast<size_t>(g.k) * D::kBytesA));
    const int limit = fit < V::kTileRows ? V::kTileRows : fit;
    const int blocks = (g.rows + limit - 1) / limit;
    for (int i = 0; i < blocks; ++i) {
      const int first = static_cast<int>(static_cast<int64_t>(g.rows) * i / blocks);
      const int last = static_cast<int>(static_cast<int64_t>(g.rows) * (i + 1) / blocks);
      switch (g.epilogue) {
        case Epilogue::kStore:
          block<Epilogue::kStore>(g, first, last);
          break;
        case Epilogue::kAdd:
          block<Epilogue::kAdd>(g, first, last);
          break;
        case Epilogue::kSiluMul:
          block<Epilogue::kSiluMul>(g, first, last);
          break;
        case Epilogue::kGeluMul:
          block<Epilogue::kGeluMul>(g, first, last);
          break;
      }
    }
  }
};

// 4-bit weights to int8: value = (nibble - 8) * group_scale, in [-126, 126] (7 x 18), exact.
// nibbles [K / 4, 128]: byte j holds byte j of the step's 256 in its low half and byte 128 + j in its high half.
// group_scale [K / group, 64].
// Bytes wrap modulo 256, which the exact result (in int8) does not notice; so the loops vectorise over plain bytes.
template <class V>
void unpack_int4(const uint8_t* nibbles, const uint8_t* group_scale, int k, int group, int8_t* out) {
  const int steps = group / 4;
  for (int first = 0; first < k; first += group, group_scale += kPanel) {
    uint8_t scale[256];
    for (int j = 0; j < 256; ++j) scale[j] = group_scale[j / 4];
    for (int step = 0; step < steps; ++step, nibbles += 128, out += 256)
      for (int j = 0; j < 128; ++j) {
        const auto lo = static_cast<uint8_t>((nibbles[j] & 15) - 8), hi = static_cast<uint8_t>((nibbles[j] >> 4) - 8);
        out[j] = static_cast<int8_t>(static_cast<uint8_t>(lo * scale[j]));
        out[128 + j] = static_cast<int8_t>(static_cast<uint8_t>(hi * scale[128 + j]));
      }
  }
}

template <class V>
int64_t peak_int8(int64_t steps) {
  alignas(64) int8_t bytes[64] = {};
  constexpr int kRows = V::kTileRows, kVectors = V::kTileVectors;
  typename V::I acc[kRows][kVectors];
  alignas(64) int32_t zeros[16] = {};
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < kVectors; ++c) acc[r][c] = V::load_i32(zeros);
  const auto a = V::broadcast4(reinterpret_cast<const uint8_t*>(bytes));
  const auto b = V::load4(bytes);
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < kVectors; ++c) V::dot4(acc[r][c], a, b);
  }
  float sink = 0.0f;  // keeps the accumulators alive
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < kVectors; ++c) sink += V::sum(V::to_float(acc[r][c]));
  asm volatile("" ::"g"(&sink) : "memory");
  return int64_t{kRows} * kVectors * 64;
}

}  // namespace
}  // namespace aegis

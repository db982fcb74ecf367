// GEMM of activations by packed weights, int8 (W8A8, and W4A8 once unpacked) and bf16.
//
// Goal: the peak of the dot-product unit at M >= 32, memory speed below. Non-goals: general strides,
// transposes, K-blocking (a panel of the largest K here, 14,336 x 64 bytes, still streams from L2/L3 while
// the accumulators stay in registers, and int32 holds 14,336 * 255 * 127 = 4.6e8 < 2^31).
//
// A tile is R rows by C vectors of 16 columns; its accumulators live in registers over all of K, so each
// output is one integer sum and one float epilogue: the same bits whatever R, C, the batch and the thread.
#pragma once

#include <atomic>

#include "isa/kernels.h"
#include "ops/math.h"

namespace aegis {
namespace {

template <class V>
struct Int8Dot {
  using Acc = typename V::I;
  static constexpr int kTileRows = V::kTileRows, kTileVectors = V::kTileVectors;
  static constexpr int kRows = 1;    // of A that an accumulator holds
  static constexpr int kPasses = 1;  // over K a tile
  static constexpr int kDepth = 4;   // values of K a step
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

// The same where an instruction multiplies two rows of 8 bytes by two columns of 8 (V::kInt8Depth == 8). Two rows by a
// vector of columns fill so many registers that a tile takes one vector after the other, each with a pass over K.
template <class V>
struct Int8Pairs : Int8Dot<V> {
  static constexpr int kTileRows = V::kPairTileRows, kTileVectors = 2;
  static constexpr int kRows = 2;
  static constexpr int kPasses = kTileVectors;
  static constexpr int kDepth = 8;
};

template <class V>
struct Bf16Dot {
  using Acc = typename V::F;
  static constexpr int kTileRows = V::kTileRows, kTileVectors = V::kTileVectors;
  static constexpr int kRows = 1;
  static constexpr int kPasses = 1;
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

template <class V, class D>
struct GemmOp {
  using F = typename V::F;
  // Bytes of a step of K: of one row of A, of a vector of 16 columns of B, of a panel.
  static constexpr size_t kStepA = D::kDepth * D::kBytesA, kVectorB = 16 * D::kDepth * D::kBytesB,
                          kStepB = 4 * kVectorB;

  // What the tiles of one panel prefetch of the next: `stride` bytes a step of K, at most two lines (128 bytes) of it,
  // which covers all of it from two tiles (7 rows) on.
  struct Ahead {
    const char* p;
    ptrdiff_t stride;
  };

  template <int R, int C, Epilogue E>
  static void tile(const Gemm& g, const char* a, size_t row_bytes, const char* b, int row, int column, Ahead& ahead) {
    typename D::Acc acc[R][C];
    if constexpr (D::kRows == 2) {
      multiply_pairs(g, a, row_bytes, b, column, ahead, acc);
    } else {  // not a function either: GCC 12 drops the prefetches of one that is always inlined
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
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const int main = row + r - g.low_rows;
      F v[C];
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) v[c] = D::value(g, acc[r][c], row + r, column + 16 * c);
      if (main < 0) {
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) V::store(low_row(g, row + r) + column + 16 * c, v[c]);
        continue;
      }
      const int low = g.low_of == nullptr ? -1 : g.low_of[main] - g.low_first;
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        if (low >= 0) v[c] = V::add(v[c], V::load(low_row(g, low) + column + 16 * c));
        if (g.bias != nullptr) v[c] = V::add(v[c], V::load(g.bias + column + 16 * c));
      }
      write<C, E>(g, v, g.out + static_cast<size_t>(main) * g.out_stride, column);
    }
  }

  static float* low_row(const Gemm& g, int row) { return g.low_out + static_cast<size_t>(row) * g.low_stride; }

  // The sums of R rows by C vectors where rows are multiplied in pairs: an odd last row is paired with itself, and its
  // double dropped. They go through memory, once a tile.
  template <int R, int C>
  static void multiply_pairs(const Gemm& g, const char* a, size_t row_bytes, const char* b, int column, Ahead& ahead,
                             typename D::Acc (&sums)[R][C]) {
    constexpr int P = (R + 1) / 2;
    const int depth = g.k;
    const ptrdiff_t stride = ahead.stride;
    const char* next = ahead.p;
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      const char *ak = a, *bk = b + kVectorB * static_cast<size_t>(c);
      typename V::Pair acc[P];
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) acc[p] = V::load_pair(g.b_init + column + 16 * c);
      for (int k = 0; k < depth; k += D::kDepth) {
        decltype(V::load8(ak)) av[P];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
          av[p] = V::load8(ak + static_cast<size_t>(2 * p) * row_bytes,
                           ak + static_cast<size_t>(2 * p + 1 < R ? 2 * p + 1 : 2 * p) * row_bytes);
#pragma GCC unroll 16
        for (int j = 0; j < 8; ++j) {  // two columns
          const auto bv = V::load8(bk + 16 * j);
#pragma GCC unroll 16
          for (int p = 0; p < P; ++p) V::dot8(acc[p], j, av[p], bv);
          // Else GCC 12 loads all columns first, and spills accumulators.
          if (j % 2 == 1) std::atomic_signal_fence(std::memory_order_seq_cst);
        }
        V::prefetch(next);
        V::prefetch(next + 64);
        next += stride;
        ak += kStepA;
        bk += kStepB;
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sums[r][c] = r % 2 == 0 ? V::first_row(acc[r / 2]) : V::second_row(acc[r / 2]);
    }
    ahead.p = next;
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
    tile<R, D::kTileVectors, E>(g, a, row_bytes, b, row, column, ahead);
  }

  // All rows [first, last) by the half panels [begin, end).
  template <Epilogue E>
  static void block(const Gemm& g, int first, int last) {
    const size_t panel_bytes = static_cast<size_t>(g.k) * kPanel * D::kBytesB;
    const int steps = g.k / D::kDepth * D::kPasses;
    for (int half = g.begin; half < g.end;) {
      // A full panel where the range and the set's tile allow it, else half of one.
      const bool wide = D::kTileVectors == 4 && half % 2 == 0 && half + 2 <= g.end;
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
      const int top = first + rows_before(t, rows, count), bottom = first + rows_before(t + 1, rows, count);
      const char* a = static_cast<const char*>(g.a) + static_cast<size_t>(top) * row_bytes;
      if (wide)
        wide_tile_of_rows<D::kTileRows, E>(g, bottom - top, a, row_bytes, b, top, column, ahead);
      else
        tile_of_rows<D::kTileRows, E>(g, bottom - top, a, row_bytes, b, top, column, ahead);
    }
  }

  static int rows_before(int tile, int rows, int count) {
    if constexpr (D::kRows == 2) {  // whole pairs
      const int before = 2 * static_cast<int>(static_cast<int64_t>((rows + 1) / 2) * tile / count);
      return before < rows ? before : rows;
    }
    return static_cast<int>(static_cast<int64_t>(rows) * tile / count);
  }

  static int tile_count(int rows) { return (rows + D::kTileRows - 1) / D::kTileRows; }

  static void run(const Gemm& g) {
    // Rows in blocks whose A stays in L2 (1 MB on the machines at hand) beside a panel of B.
    const int fit = static_cast<int>((512u << 10) / (static_cast<size_t>(g.k) * D::kBytesA));
    const int limit = fit < D::kTileRows ? D::kTileRows : fit;
    const int rows = g.low_rows + g.rows, blocks = (rows + limit - 1) / limit;
    for (int i = 0; i < blocks; ++i) {
      const int first = static_cast<int>(static_cast<int64_t>(rows) * i / blocks);
      const int last = static_cast<int>(static_cast<int64_t>(rows) * (i + 1) / blocks);
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
// nibbles [K / depth, 32 depth]: byte j holds byte j of the step's 64 depth in its low half and byte 32 depth + j in
// its high half.
// group_scale [K / group, 64].
// Bytes wrap modulo 256, which the exact result (in int8) does not notice; so the loops vectorise over plain bytes.
template <class V>
void unpack_int4(const uint8_t* nibbles, const uint8_t* group_scale, int k, int group, int8_t* out) {
  constexpr int kHalf = kPanel / 2 * V::kInt8Depth, kStep = 2 * kHalf;
  const int steps = group / V::kInt8Depth;
  for (int first = 0; first < k; first += group, group_scale += kPanel) {
    uint8_t scale[kStep];
    for (int j = 0; j < kStep; ++j) scale[j] = group_scale[j / V::kInt8Depth];
    for (int step = 0; step < steps; ++step, nibbles += kHalf, out += kStep)
      for (int j = 0; j < kHalf; ++j) {
        const auto lo = static_cast<uint8_t>((nibbles[j] & 15) - 8), hi = static_cast<uint8_t>((nibbles[j] >> 4) - 8);
        out[j] = static_cast<int8_t>(static_cast<uint8_t>(lo * scale[j]));
        out[kHalf + j] = static_cast<int8_t>(static_cast<uint8_t>(hi * scale[kHalf + j]));
      }
  }
}

}  // namespace
}  // namespace aegis

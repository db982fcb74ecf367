// Attention over a path of the token tree: two small GEMMs over panels that the KV cache is stored in.
//
// Scores of all keys of all ancestors stand side by side in one row (each node padded to 16 keys), one
// softmax over the row, then one product with the values, node after node. All of it for one tile of rows before the
// next: its scores stay in L1, and keys and values, which the first tile brought into L2, are what streams. A row's
// arithmetic depends on its path in the tree alone, never on which rows share its tile or its batch.
#pragma once

#include "isa/kernels.h"
#include "ops/math.h"

namespace aegis {
namespace {

template <class V>
struct AttentionOp {
  using F = typename V::F;
  static constexpr int kRows = V::kTileRows, kVectors = V::kTileVectors;
  static_assert(kRows <= kMaxTileRows);
  // Elements from what is multiplied to what is fetched meanwhile: 8 KB, 64 keys of 64. A long conversation's keys and
  // values do not stay in L3 beside the weights.
  static constexpr size_t kAhead = 4096;

  // Keys of part p that query i sees.
  static int seen_of(const Attention& t, int p, int i) {
    const QueryEnd& end = t.ends[i];
    return p < end.part ? t.parts[p].n : p == end.part ? end.seen : 0;
  }
  static int padded(int n) { return (n + 15) / 16 * 16; }

  // acc[r][c] += a[r, :] . b[:, c]: a bf16 rows of stride `lda`; step and vector strides of b in elements.
  template <int R, int C>
  static void dot(F (&acc)[R][C], const uint16_t* a, size_t lda, const uint16_t* b, size_t step, size_t vector,
                  int pairs, Fetch* fetch) {
    const bool more = fetch != nullptr && fetch->p < fetch->end;
    const char* next = more ? fetch->p : reinterpret_cast<const char*>(b);
    const ptrdiff_t line = more ? 64 : 0;
    if (more) fetch->p += line * pairs;
    for (int k = 0; k < pairs; ++k) {
      typename V::B2 bv[C];
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) bv[c] = V::load2(b + vector * static_cast<size_t>(c));
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) V::prefetch(b + vector * static_cast<size_t>(c) + kAhead);
      V::prefetch(next);
      next += line;
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const auto av = V::broadcast2(a + static_cast<size_t>(r) * lda);
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) V::dot2(acc[r][c], av, bv[c]);
      }
      a += 2;
      b += step;
    }
  }

  template <int R, int C>
  static void scores_tile(const uint16_t* q, int d, const uint16_t* k, float* out, size_t stride, Fetch* fetch) {
    F acc[R][C];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) acc[r][c] = V::zero();
    dot<R, C>(acc, q, static_cast<size_t>(d), k, 32, static_cast<size_t>(d) * 16, d / 2, fetch);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) V::store(out + static_cast<size_t>(r) * stride + 16 * c, acc[r][c]);
  }

  template <int R, int C>
  static void values_tile(const Attention& t, const uint16_t* p, size_t stride, int column, const float* inverse,
                          int row, int last) {
    F acc[R][C];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) acc[r][c] = V::zero();
    for (int i = 0; i < t.part_count; ++i) {
      const int n = seen_of(t, i, last);
      dot<R, C>(acc, p, stride, t.parts[i].v + 2 * column, 2 * static_cast<size_t>(t.d), 32, (n + 1) / 2, t.fetch);
      p += padded(n);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const int token = (row + r) / t.group, head = (row + r) % t.group;
      float* out = t.out + static_cast<size_t>(token) * t.out_stride + head * t.d + column;
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) V::store(out + 16 * c, V::mul(acc[r][c], V::set1(inverse[r])));
    }
  }

  // Chooses the tile's height at run time: calls f.template run<rows>().
  template <int R, class Call>
  static void of_rows(int rows, const Call& f) {
    if constexpr (R > 1) {
      if (rows < R) return of_rows<R - 1>(rows, f);
    }
    f.template run<R>();
  }

  struct ScoresCall {
    const uint16_t* q;
    int d;
    const uint16_t* k;
    float* out;
    size_t stride;
    int blocks;
    Fetch* fetch;
    // In tiles of even width: nine blocks are 3 + 3 + 3, not 4 + 4 + 1, as a narrow tile waits for its sums.
    template <int R>
    void run() const {
      const int tiles = (blocks + kVectors - 1) / kVectors;
      for (int i = 0, b = 0; i < tiles; ++i) {
        const int width = blocks * (i + 1) / tiles - b;
        of_width<R, kVectors>(width, b);
        b += width;
      }
    }
    template <int R, int C>
    void of_width(int width, int b) const {
      if constexpr (C > 1) {
        if (width < C) return of_width<R, C - 1>(width, b);
      }
      scores_tile<R, C>(q, d, k + static_cast<size_t>(b) * static_cast<size_t>(d) * 16, out + 16 * b, stride, fetch);
    }
  };

  struct ValuesCall {
    const Attention& t;
    const uint16_t* p;
    size_t stride;
    const float* inverse;
    int row, last;
    template <int R>
    void run() const {
      int column = 0;
      for (; column + 16 * kVectors <= t.d; column += 16 * kVectors)
        values_tile<R, kVectors>(t, p, stride, column, inverse, row, last);
      for (; column < t.d; column += 16) values_tile<R, 1>(t, p, stride, column, inverse, row, last);
    }
  };

  // Softmax numerators of one row, as bf16. Returns their sum as rounded, lane by lane, so that they add up to one: dot
  // products with ones, of pairs at once and without a conversion.
  static F numerators(const float* s, int n, uint16_t* p) {
    F largest = V::load(s), other = largest;
    int i = 16;
    for (; i + 32 <= n; i += 32) {
      largest = V::max(largest, V::load(s + i));
      other = V::max(other, V::load(s + i + 16));
    }
    if (i < n) largest = V::max(largest, V::load(s + i));
    constexpr float kLog2E = 1.44269504f;
    const F factor = V::set1(kLog2E), shift = V::set1(-kLog2E * V::max_lane(V::max(largest, other)));
    const auto weight = [&](int at) { return Math<V>::exp2_bf16(V::fma(V::load(s + at), factor, shift)); };
    static constexpr uint16_t kOnes[2] = {0x3f80, 0x3f80};
    const uint16_t* hidden = kOnes;
    asm("" : "+r"(hidden));  // GCC 12 for ARM makes of a bf16 one that it can see the immediate of an fp16 one
    const auto ones = V::broadcast2(hidden);
    F sum = V::zero();
    if (n % 32 != 0) {
      V::store_bf16(p + n - 16, weight(n - 16));
      sum = V::from_bf16(p + n - 16);
    }
    for (i = 0; i + 32 <= n; i += 32) V::dot2(sum, ones, V::store2_bf16(p + i, weight(i), weight(i + 16)));
    return sum;
  }

  // What the options leave of a row of scores of what query `last` sees: capped, and none of the keys before `low`, a
  // position.
  static void limit(const Attention& t, float* s, int width, int low, int last) {
    if (t.softcap > 0.0f) {
      const F cap = V::set1(t.softcap), two_by_cap = V::set1(2.0f / t.softcap);
      for (int i = 0; i < width; i += 16) V::store(s + i, Math<V>::softcap(V::load(s + i), cap, two_by_cap));
    }
    if (t.window == 0) return;
    const F hidden = V::set1(-1e30f);
    for (int i = 0; i < t.part_count; ++i) {
      const int n = seen_of(t, i, last), past = min(n, low - t.parts[i].start);
      for (int b = 0; b < past; b += 16) V::store(s + b, V::first(hidden, past - b, V::load(s + b)));
      s += padded(n);
    }
  }

  static void run(const Attention& t) {
    const int rows = t.queries * t.group;
    const bool limited = t.softcap > 0.0f || t.window > 0;
    const F hidden = V::set1(-1e30f);
    const int tiles = (rows + kRows - 1) / kRows;  // of even height
    for (int tile = 0, r = 0; tile < tiles; ++tile) {
      const int height = rows * (tile + 1) / tiles - r;
      const int last = (r + height - 1) / t.group;  // the tile's query that sees the most keys
      int width = 0;
      for (int i = 0; i < t.part_count; ++i) width += padded(seen_of(t, i, last));
      const size_t stride = static_cast<size_t>(width);
      float* s = t.scores;
      for (int i = 0; i < t.part_count; ++i) {
        const int n = padded(seen_of(t, i, last));
        const ScoresCall call{t.q + static_cast<size_t>(r) * t.d, t.d, t.parts[i].k, s, stride, n / 16, t.fetch};
        of_rows<kRows>(height, call);
        s += n;
      }
      F sum[kRows];
      float inverse[kRows];
      for (int j = 0; j < height; ++j) {
        s = t.scores + static_cast<size_t>(j) * stride;
        const int query = (r + j) / t.group;
        const QueryEnd& end = t.ends[query];
        if (limited) limit(t, s, width, t.parts[end.part].start + end.seen - t.window, last);
        // A row ends with the block of 16 of the last key that it sees, whatever the others of its tile see.
        int own = 0;
        for (int i = 0; i <= end.part; ++i) {
          const int seen = seen_of(t, i, query), n = padded(seen);
          // Padding lanes, and keys after the query: overwritten, whatever they held.
          if (seen < n) V::store(s + own + n - 16, V::first(V::load(s + own + n - 16), seen % 16, hidden));
          own += n;
        }
        uint16_t* p = t.probs + static_cast<size_t>(j) * stride;
        sum[j] = numerators(s, own, p);
        for (int i = own; i < width; i += 16) V::store_bf16(p + i, V::zero());
      }
      for (int j = 0; j < height; ++j) inverse[j] = 1.0f / V::sum(sum[j]);
      const ValuesCall call{t, t.probs, stride, inverse, r, last};
      of_rows<kRows>(height, call);
      r += height;
    }
  }

  static int min(int a, int b) { return a < b ? a : b; }
};

}  // namespace
}  // namespace aegis

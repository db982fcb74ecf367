// What one instruction set offers: the operators of ops/, compiled for it, as a table of functions.
//
// All sizes are checked by the caller (model/): kernels assume K % 16 == 0, head_dim % 16 == 0 and buffers
// of the stated shapes. Thread-safety: pure functions of their arguments; disjoint output ranges may be
// computed by different threads at once.
#pragma once

#include <cstddef>
#include <cstdint>

namespace aegis {

// Columns (output channels) in one packed panel of B: four 16-lane vectors.
inline constexpr int kPanel = 64;

// Steps of a row's second int8 digit in one of the first.
inline constexpr float kLowSteps = 254.0f;

// What happens to a finished tile.
enum class Epilogue {
  kStore,    // out[m, n] = value
  kAdd,      // out[m, n] += value (residual)
  kSiluMul,  // columns alternate 16 of gate, 16 of up: out[m, n / 2] = silu(gate) * up
  kGeluMul,  // the same with GELU by its tanh formula
};
inline constexpr bool is_gated(Epilogue e) { return e == Epilogue::kSiluMul || e == Epilogue::kGeluMul; }

// Largest head_dim: rotary of one that is no multiple of 32 goes through a buffer of this size.
inline constexpr int kMaxHead = 512;

// Most rows of a set's tile.
inline constexpr int kMaxTileRows = 6;

// out = epilogue(A * B^T), for the half panels [begin, end) of B (32 columns each).
//   int8: A uint8 [low_rows + rows, K] with the set's activation offset, a_scale f32 [low_rows + rows];
//         B int8 [panels, K / depth, 64, depth] with the set's depth, b_scale f32 [N],
//         b_init i32 [N] = -offset * sum_k B[k, n].
//   bf16: A [rows, K]; B [panels, K / 2, 64, 2]; scales and init unused.
struct Gemm {
  const void* a;
  const float* a_scale;
  const void* b;
  const float* b_scale;
  const int32_t* b_init;
  const float* bias;  // f32 [N] or null
  float* out;
  size_t out_stride;  // floats from row to row
  int rows;
  int k;
  int columns;  // valid columns N; panels are padded to 64
  int begin, end;
  Epilogue epilogue;
  const void* next;  // what this thread reads after this GEMM, or null: prefetched by the last panel
  // int8: A begins with the second digits of some rows, which go through the same tiles. What they give is kept in
  // low_out f32 [low_rows, low_stride] (stride: all columns of the panels), and row low_of[r] - low_first of it, where
  // low_of[r] >= 0, is added to row r before bias and epilogue. low_of: null where there are none.
  int low_rows = 0;
  float* low_out = nullptr;
  size_t low_stride = 0;
  const int32_t* low_of = nullptr;
  int low_first = 0;
};

// Keys and values of one node, for one layer and one KV head.
//   k bf16 [ceil(n / 16), d / 2, 16, 2], v bf16 [ceil(n / 2), d, 2].
struct KvPart {
  const uint16_t* k;
  const uint16_t* v;
  int n;
  int start = 0;  // position of the first key
};

// What a query sees: all keys of the parts before `part`, and the first `seen` of it (seen >= 1).
struct QueryEnd {
  int part;
  int seen;
};

// Memory from p to end, fetched into L2 beside other work, a line a step.
struct Fetch {
  const char* p = nullptr;
  const char* end = nullptr;
};

// Attention of `queries` tokens of one path, `group` query heads sharing one KV head.
//   q bf16 [queries * group, d], already scaled by 1 / sqrt(d); parts: the path's nodes, from the root on; ends: of
//   each query, the last one's the farthest, in the last part. out f32: row (i, g) at out + i * out_stride + g * d.
//   scores f32 and probs bf16: scratch of min(queries * group, kMaxTileRows) * padded keys each.
//   softcap: scores become softcap * tanh(score / softcap); window: a query sees so many positions back, itself
//   included; 0: neither. fetch: null, or what to fetch meanwhile, moved on by as much as was.
struct Attention {
  const uint16_t* q;
  const KvPart* parts;
  const QueryEnd* ends;
  int part_count;
  int queries, group, d;
  float* scores;
  uint16_t* probs;
  float* out;
  size_t out_stride;
  float softcap = 0.0f;
  int window = 0;
  Fetch* fetch = nullptr;
};

struct Kernels {
  const char* name;
  int activation_offset;
  int int8_depth;  // values of K that stand together in a packed int8 panel: 4, or 8

  // RMSNorm (arXiv 1910.07467) of x f32 [n]: x / sqrt(mean(x^2) + eps) * weight (null = ones).
  void (*norm)(const float* x, const float* weight, int n, float eps, float* out);
  // x += norm(y)
  void (*norm_add)(const float* y, const float* weight, int n, float eps, float* x);
  void (*norm_bf16)(const float* x, const float* weight, int n, float eps, uint16_t* out);
  void (*norm_int8)(const float* x, const float* weight, int n, float eps, uint8_t* out, float* scale, uint8_t* low);
  // Symmetric int8 of x f32 [n]: scale = max|x| / 127; a NaN or Inf in x makes the scale NaN. low, if not null: the
  // second digit, int8 of what is left over, in steps of scale / 254.
  void (*quantise)(const float* x, int n, uint8_t* out, float* scale, uint8_t* low);
  void (*to_bf16)(const float* x, int n, uint16_t* out);
  void (*from_bf16)(const uint16_t* x, int n, float* out);
  // x f32 [n] in blocks (a power of two, >= 16): out = H x / sqrt(block), Sylvester order; _int8: then quantised.
  void (*hadamard)(const float* x, int n, int block, float* out);
  void (*hadamard_int8)(const float* x, int n, int block, float* scratch, uint8_t* out, float* scale, uint8_t* low);
  // Rotates the pairs (i, i + d / 2) of one head: x f32 [d], cos and sin f32 [d / 2] -> bf16 [d], times scale.
  void (*rope)(const float* x, int d, const float* cos, const float* sin, float scale, uint16_t* out);
  float (*dot)(const float* a, const float* b, int n);

  void (*gemm_int8)(const Gemm&);
  void (*gemm_bf16)(const Gemm&);
  void (*attend)(const Attention&);

  // Unpacks one panel of 4-bit weights to int8 [K / depth, 64, depth], group % depth == 0; see model/linear.h for the
  // packed order.
  void (*unpack_int4)(const uint8_t* nibbles, const uint8_t* group_scale, int k, int group, int8_t* out);

  // Runs `steps` times a tile's int8 dot products from registers; returns the multiply-adds done a step.
  int64_t (*peak_int8)(int64_t steps);
};

// One function an instruction set; which of them are compiled in is decided by CMake.
const Kernels& kernels_scalar();
const Kernels& kernels_avx2();
const Kernels& kernels_avxvnni();
const Kernels& kernels_avx512vnni();
const Kernels& kernels_avx512bf16();
const Kernels& kernels_neon();
const Kernels& kernels_neonbf16();
const Kernels& kernels_neoni8mmbf16();

}  // namespace aegis

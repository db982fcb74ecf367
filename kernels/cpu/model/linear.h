// A linear layer's weights, packed for the GEMM kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa/kernels.h"
#include "runtime/memory.h"

namespace aegis {

enum class Scheme { kNone, kInt8, kInt4, kBf16 };

// Which row of the logical weight stands in a packed column.
enum class RowOrder {
  kPlain,
  kGateUp,  // 16 gate rows, then the 16 up rows beside them, and so on: SiLU(gate) * up needs no second pass
};

// Prepared activations: uint8 with the kernels' offset, and a scale a row; or bf16 alone. The int8 ones begin with
// `low_rows` rows of second digits: row low_of[r] - low_first, where low_of[r] >= 0, is that of row low_rows + r.
struct Inputs {
  const void* a;
  const float* scale;
  int rows;
  int low_rows = 0;
  const int32_t* low_of = nullptr;
  int low_first = 0;
};

// Packed forms, a panel of 64 output channels after the other (the last one padded with zeros):
//   int8 [K / depth, 64, depth] with the kernels' int8_depth; bf16 [K / 2, 64, 2]; int4 [K / depth, 32 depth] nibbles:
//   byte j of a step holds value j of its 64 depth low and value 32 depth + j high.
class Linear {
 public:
  // Where matrices are to be kept (small ones and what belongs to them are not); must outlive this object.
  void use(HugePages& pages) { pages_ = &pages; }

  // Logical weights [n, k], row-major, for the kernels that will read them. Sizes are the caller's promise:
  // k % 16 == 0, k % group == 0 and group % 8 == 0.
  void pack_int8(const int8_t* weight, const float* scale, int n, int k, RowOrder order, const Kernels& kernels);
  void pack_int4(const uint8_t* nibbles, const uint8_t* group_scale, const float* scale, int n, int k, int group,
                 RowOrder order, const Kernels& kernels);
  void pack_bf16(const uint16_t* weight, int n, int k, RowOrder order);
  void set_bias(const float* bias, RowOrder order);

  Scheme scheme() const { return scheme_; }
  bool int8_input() const { return scheme_ == Scheme::kInt8 || scheme_ == Scheme::kInt4; }
  int n() const { return n_; }
  int k() const { return k_; }
  int half_panels() const { return (n_ + 31) / 32; }
  int padded() const { return (n_ + kPanel - 1) / kPanel * kPanel; }
  const void* data() const { return data_; }
  const void* panel(int i) const { return data_ + static_cast<size_t>(i) * panel_bytes_; }

  // Rows of `in` through half panels [begin, end). scratch: k * 64 bytes a thread, for int4 only. low: f32
  // [in.low_rows, padded()], for int8 inputs only.
  void run(const Kernels& kernels, const Inputs& in, float* out, size_t out_stride, Epilogue epilogue, int begin,
           int end, const void* next, int8_t* scratch, float* low) const;

 private:
  int source_row(int column, RowOrder order) const;
  void allocate(Scheme scheme, int n, int k, size_t panel_bytes);

  Scheme scheme_ = Scheme::kNone;
  int n_ = 0, k_ = 0, group_ = 0;
  size_t panel_bytes_ = 0;
  HugePages* pages_ = nullptr;
  std::byte* data_ = nullptr;  // in pages_, or own_
  AlignedBytes own_, scale_, init_, bias_, group_scale_;
};

}  // namespace aegis

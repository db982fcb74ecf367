#include "model/linear.h"

#include <cstring>

namespace aegis {
namespace {

template <class T>
T* as(const AlignedBytes& bytes) {
  return reinterpret_cast<T*>(bytes.get());
}

template <class T>
AlignedBytes zeros(size_t n) {
  AlignedBytes bytes = aligned_bytes(n * sizeof(T));
  std::memset(bytes.get(), 0, n * sizeof(T));
  return bytes;
}

// A row of weights into its lane of a panel: kDepth values, then those of the other lanes, and so on.
template <int kDepth>
void place(const int8_t* row, int k, std::byte* out) {
  for (int i = 0; i < k; i += kDepth) std::memcpy(out + i * kPanel, row + i, kDepth);
}

}  // namespace

int Linear::source_row(int column, RowOrder order) const {
  if (column >= n_) return -1;
  if (order == RowOrder::kPlain) return column;
  const int block = column / 32, lane = column % 16;
  return block * 16 + lane + (column % 32 < 16 ? 0 : n_ / 2);
}

void Linear::allocate(Scheme scheme, int n, int k, size_t panel_bytes) {
  scheme_ = scheme;
  n_ = n;
  k_ = k;
  panel_bytes_ = panel_bytes;
  const size_t panels = static_cast<size_t>(n + kPanel - 1) / kPanel;
  constexpr size_t kSmall = size_t{64} << 10;
  const size_t bytes = panels * panel_bytes;
  if (pages_ != nullptr && bytes >= kSmall) {
    data_ = pages_->allocate(bytes);
  } else {
    own_ = aligned_bytes(bytes);
    data_ = own_.get();
  }
  if (int8_input()) {
    scale_ = zeros<float>(panels * kPanel);
    init_ = zeros<int32_t>(panels * kPanel);
  }
}

void Linear::pack_int8(const int8_t* weight, const float* scale, int n, int k, RowOrder order, const Kernels& kernels) {
  const int depth = kernels.int8_depth;
  allocate(Scheme::kInt8, n, k, static_cast<size_t>(k) * kPanel);
  for (int panel = 0; panel * kPanel < n; ++panel) {
    std::byte* out = data_ + static_cast<size_t>(panel) * panel_bytes_;
    for (int lane = 0; lane < kPanel; ++lane) {
      const int row = source_row(panel * kPanel + lane, order);
      int32_t sum = 0;
      if (row < 0) {
        for (int i = 0; i < k / depth; ++i)
          std::memset(out + (i * kPanel + lane) * depth, 0, static_cast<size_t>(depth));
      } else {
        const int8_t* w = weight + static_cast<size_t>(row) * static_cast<size_t>(k);
        (depth == 8 ? place<8> : place<4>)(w, k, out + lane * depth);
        for (int i = 0; i < k; ++i) sum += w[i];
        as<float>(scale_)[panel * kPanel + lane] = scale[row];
      }
      as<int32_t>(init_)[panel * kPanel + lane] = -kernels.activation_offset * sum;
    }
  }
}

void Linear::pack_int4(const uint8_t* nibbles, const uint8_t* group_scale, const float* scale, int n, int k, int group,
                       RowOrder order, const Kernels& kernels) {
  const int depth = kernels.int8_depth;
  allocate(Scheme::kInt4, n, k, static_cast<size_t>(k) * kPanel / 2);
  group_ = group;
  const size_t groups = static_cast<size_t>(k / group);
  const size_t panels = static_cast<size_t>(n + kPanel - 1) / kPanel;
  group_scale_ = zeros<uint8_t>(panels * groups * kPanel);
  std::memset(data_, 0x88, panels * panel_bytes_);  // 8 is zero
  for (int column = 0; column < n; ++column) {
    const int row = source_row(column, order), panel = column / kPanel, lane = column % kPanel;
    const uint8_t* w = nibbles + static_cast<size_t>(row) * static_cast<size_t>(k) / 2;
    const uint8_t* s = group_scale + static_cast<size_t>(row) * groups;
    auto* out = reinterpret_cast<uint8_t*>(data_) + static_cast<size_t>(panel) * panel_bytes_;
    int32_t sum = 0;
    for (int first = 0; first < k; first += depth, out += 32 * depth)
      for (int i = first; i < first + depth; ++i) {
        const int nibble = (w[i / 2] >> (i % 2 * 4)) & 15;
        sum += (nibble - 8) * s[i / group];
        uint8_t& byte = out[lane % 32 * depth + i - first];
        byte = static_cast<uint8_t>(lane < 32 ? (byte & 0xf0) | nibble : (byte & 0x0f) | (nibble << 4));
      }
    for (size_t g = 0; g < groups; ++g)
      as<uint8_t>(group_scale_)[(static_cast<size_t>(panel) * groups + g) * kPanel + static_cast<size_t>(lane)] = s[g];
    as<float>(scale_)[column] = scale[row];
    as<int32_t>(init_)[column] = -kernels.activation_offset * sum;
  }
}

void Linear::pack_bf16(const uint16_t* weight, int n, int k, RowOrder order) {
  allocate(Scheme::kBf16, n, k, static_cast<size_t>(k) * kPanel * 2);
  for (int panel = 0; panel * kPanel < n; ++panel) {
    std::byte* out = data_ + static_cast<size_t>(panel) * panel_bytes_;
    for (int lane = 0; lane < kPanel; ++lane) {
      const int row = source_row(panel * kPanel + lane, order);
      const uint16_t* w = weight + static_cast<size_t>(row < 0 ? 0 : row) * static_cast<size_t>(k);
      for (int i = 0; i < k / 2; ++i) {
        std::byte* to = out + (i * kPanel + lane) * 4;
        if (row < 0)
          std::memset(to, 0, 4);
        else
          std::memcpy(to, w + 2 * i, 4);
      }
    }
  }
}

void Linear::set_bias(const float* bias, RowOrder order) {
  bias_ = zeros<float>(static_cast<size_t>(padded()));
  for (int column = 0; column < n_; ++column) as<float>(bias_)[column] = bias[source_row(column, order)];
}

void Linear::run(const Kernels& kernels, const Inputs& in, float* out, size_t out_stride, Epilogue epilogue, int begin,
                 int end, const void* next, int8_t* scratch, float* low) const {
  const float* scale = as<float>(scale_);
  const int32_t* init = as<int32_t>(init_);
  Gemm g{};
  g.a = in.a;
  g.a_scale = in.scale;
  g.b = data_;
  g.b_scale = scale;
  g.b_init = init;
  g.bias = as<float>(bias_);
  g.out = out;
  g.out_stride = out_stride;
  g.rows = in.rows;
  g.k = k_;
  g.columns = n_;
  g.begin = begin;
  g.end = end;
  g.epilogue = epilogue;
  g.next = next;
  if (int8_input() && in.low_rows > 0) {
    g.low_rows = in.low_rows;
    g.low_out = low;
    g.low_stride = static_cast<size_t>(padded());
    g.low_of = in.low_of;
    g.low_first = in.low_first;
  }
  if (scheme_ == Scheme::kBf16) return kernels.gemm_bf16(g);
  if (scheme_ == Scheme::kInt8) return kernels.gemm_int8(g);
  // int4: a panel at a time is unpacked into the thread's scratch (L2) and multiplied as int8.
  const size_t groups = static_cast<size_t>(k_ / group_);
  for (int half = begin; half < end;) {
    const int panel = half / 2, stop = (panel + 1) * 2 < end ? (panel + 1) * 2 : end;
    kernels.unpack_int4(reinterpret_cast<const uint8_t*>(data_) + static_cast<size_t>(panel) * panel_bytes_,
                        as<uint8_t>(group_scale_) + static_cast<size_t>(panel) * groups * kPanel, k_, group_, scratch);
    // The kernel counts panels from b: shift b so that this panel is the one in scratch.
    g.b = scratch;
    g.begin = half - panel * 2;
    g.end = stop - panel * 2;
    g.b_scale = scale + panel * kPanel;
    g.b_init = init + panel * kPanel;
    if (g.low_rows > 0) g.low_out = low + panel * kPanel;
    g.bias = bias_ ? as<float>(bias_) + panel * kPanel : nullptr;
    g.out = out + (is_gated(epilogue) ? panel * kPanel / 2 : panel * kPanel);
    g.columns = n_ - panel * kPanel;
    g.next = stop < end ? this->panel(panel + 1) : next;
    kernels.gemm_int8(g);
    half = stop;
  }
}

}  // namespace aegis

// How fast one W8A8 GEMM runs beside the register-only peak, measured in turn in the same run.
#pragma once

#include "isa/kernels.h"

namespace aegis {

struct GemmSpeed {
  double gemm;  // operations a second (2 a multiply-add), best round
  double peak;  // of the dot products from registers alone, best round
};

// rows activations by n x k weights on `threads` threads, each with its share of the columns. `copies` weights are used
// in turn: 1 keeps them in cache, more stream them from memory as a forward pass does. Throws std::invalid_argument.
GemmSpeed measure_gemm(const Kernels& kernels, int rows, int n, int k, int threads, int copies, int rounds);

}  // namespace aegis

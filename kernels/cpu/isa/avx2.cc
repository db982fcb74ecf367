#include "isa/avx2.h"

#include "ops/table.h"

namespace aegis {
const Kernels& kernels_avx2() {
  static constexpr Kernels table = make_kernels<Avx2>("avx2");
  return table;
}
}  // namespace aegis

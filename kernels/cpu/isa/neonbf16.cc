#include "isa/neonbf16.h"

#include "ops/table.h"

namespace aegis {
const Kernels& kernels_neonbf16() {
  static constexpr Kernels table = make_kernels<NeonBf16>("neonbf16");
  return table;
}
}  // namespace aegis

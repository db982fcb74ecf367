#include "isa/neon.h"

#include "ops/table.h"

namespace aegis {
const Kernels& kernels_neon() {
  static constexpr Kernels table = make_kernels<Neon>("neon");
  return table;
}
}  // namespace aegis

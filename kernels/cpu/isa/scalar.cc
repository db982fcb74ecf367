#include "isa/scalar.h"

#include "ops/table.h"

namespace aegis {
const Kernels& kernels_scalar() {
  static constexpr Kernels table = make_kernels<Scalar>("scalar");
  return table;
}
}  // namespace aegis

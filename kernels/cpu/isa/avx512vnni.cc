#include "isa/avx512.h"
#include "ops/table.h"

namespace aegis {
const Kernels& kernels_avx512vnni() {
  static constexpr Kernels table = make_kernels<Avx512Vnni>("avx512vnni");
  return table;
}
}  // namespace aegis

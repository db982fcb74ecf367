// Which instruction sets this build and this CPU have, best first.
#pragma once

#include <string>
#include <vector>

#include "isa/kernels.h"

namespace aegis {

// Names, best first; always ends with "scalar".
std::vector<std::string> available_isas();

// The best one, or the one that AEGIS_EDGE_ISA names. Throws std::invalid_argument where that is unknown or
// this CPU lacks it: a forced choice never falls back silently.
const Kernels& choose_kernels();

}  // namespace aegis

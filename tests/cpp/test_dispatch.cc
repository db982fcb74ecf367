// Which instruction sets are found, chosen and refused.
#include <algorithm>
#include <stdexcept>

#include "tiny_model.h"

using namespace aegis;
using namespace aegis::test;

TEST(unknown_instruction_set) {
  setenv("AEGIS_EDGE_ISA", "mmx", 1);
  CHECK_THROWS(Model(tiny_config(), 1), std::invalid_argument, "AEGIS_EDGE_ISA=mmx is unknown; this build has");
  CHECK_THROWS(Model(tiny_config(), 1), std::invalid_argument, "scalar");
  const auto isas = available_isas();
  CHECK(!isas.empty() && isas.back() == "scalar");
  // Those of the build that this CPU lacks (under qemu: -cpu cortex-a72 has none of the NEON sets).
  std::string message;
  try {
    choose_kernels();
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  for (const char* name : {"avx512bf16", "avx512vnni", "avxvnni", "avx2", "neoni8mmbf16", "neonbf16", "neon"}) {
    if (message.find(name) == std::string::npos || std::count(isas.begin(), isas.end(), name) != 0) continue;
    setenv("AEGIS_EDGE_ISA", name, 1);
    CHECK_THROWS(choose_kernels(), std::invalid_argument, "this CPU lacks that instruction set");
  }
  setenv("AEGIS_EDGE_ISA", "", 1);  // empty: not forced
  CHECK(isas.front() == choose_kernels().name);
  unsetenv("AEGIS_EDGE_ISA");
}

// A set that is compiled in, but not found on a CPU that has it, would be missed by every other test.
TEST(instruction_sets_of_an_emulated_cpu) {
  if (emulated() == nullptr) return;
  const std::string cpu = emulated();
  std::vector<std::string> wanted;
  if (cpu == "max") wanted = {"neoni8mmbf16", "neonbf16", "neon", "scalar"};
  if (cpu == "cortex-a76") wanted = {"neon", "scalar"};
  if (cpu == "cortex-a72") wanted = {"scalar"};
  if (wanted.empty()) return;
  CHECK(available_isas() == wanted);
  CHECK(choose_kernels().name == wanted.front());
}

#include "runtime/dispatch.h"

#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace aegis {
namespace {

#if defined(__x86_64__)
bool has_avxvnni() {  // leaf 7, subleaf 1, EAX bit 4; not every compiler's __builtin_cpu_supports knows the name
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1u << 4)) != 0;
}
#elif defined(__aarch64__) && defined(__linux__)
bool has_dotprod() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
bool has_bf16() { return has_dotprod() && (getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0; }
bool has_i8mm() { return has_bf16() && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0; }
#elif defined(__aarch64__)  // what the compiler may assume of every CPU of the platform
#if defined(__ARM_FEATURE_DOTPROD)
bool has_dotprod() { return true; }
#else
bool has_dotprod() { return false; }
#endif
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
bool has_bf16() { return has_dotprod(); }
#else
bool has_bf16() { return false; }
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
bool has_i8mm() { return has_bf16(); }
#else
bool has_i8mm() { return false; }
#endif
#endif

struct Entry {
  const char* name;
  const Kernels& (*kernels)();
  bool (*supported)();
};

// Best first. A new instruction set is one file in isa/ and one line here.
const Entry kEntries[] = {
#if defined(__x86_64__)
    {"avx512bf16", kernels_avx512bf16,
     [] {
       return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512dq");
     }},
    {"avx512vnni", kernels_avx512vnni,
     [] {
       return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
     }},
    {"avxvnni", kernels_avxvnni,
     [] { return has_avxvnni() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
    {"avx2", kernels_avx2, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#elif defined(__aarch64__)
    {"neoni8mmbf16", kernels_neoni8mmbf16, has_i8mm},
    {"neonbf16", kernels_neonbf16, has_bf16},
    {"neon", kernels_neon, has_dotprod},
#endif
    {"scalar", kernels_scalar, [] { return true; }},
};

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Entry& e : kEntries)
    if (e.supported()) names.emplace_back(e.name);
  return names;
}

const Kernels& choose_kernels() {
  const char* forced = std::getenv("AEGIS_EDGE_ISA");
  const std::string wanted = forced == nullptr ? "" : forced;
  std::string known;
  for (const Entry& e : kEntries) {
    known += (known.empty() ? "" : ", ") + std::string(e.name);
    if (!wanted.empty() && wanted != e.name) continue;
    if (e.supported()) return e.kernels();
    if (!wanted.empty())
      throw std::invalid_argument("AEGIS_EDGE_ISA=" + wanted + ": this CPU lacks that instruction set");
  }
  throw std::invalid_argument("AEGIS_EDGE_ISA=" + wanted + " is unknown; this build has " + known);
}

}  // namespace aegis

// What the kernel tests share: every instruction set of this CPU, portable random numbers, bf16, aligned arrays.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "runtime/dispatch.h"

namespace aegis::test {

// Calls f(kernels) for each instruction set that this build and this CPU have, the scalar one last; meanwhile
// AEGIS_EDGE_ISA names it, so that a Model made inside uses it too.
template <class F>
void for_each_isa(const F& f) {
  for (const std::string& name : available_isas()) {
    setenv("AEGIS_EDGE_ISA", name.c_str(), 1);
    f(choose_kernels());
  }
  unsetenv("AEGIS_EDGE_ISA");
}

// The CPU that qemu-user pretends to be (CMakeLists.txt says so), null where the tests run on one. In the emulator all
// is some 30 times slower, and a forked child can not start threads.
inline const char* emulated() { return std::getenv("AEGIS_TEST_EMULATED"); }

// Sets named ...bf16 multiply bf16 by an instruction with a rounding of its own; all others promise the bits of
// the scalar set everywhere, and those too wherever no bf16 product is involved.
inline bool exact_bf16(const Kernels& k) {
  const size_t n = std::strlen(k.name);
  return n < 4 || std::strcmp(k.name + n - 4, "bf16") != 0;
}

// xorshift64*: the same numbers on every platform, which the standard library's distributions do not promise.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {
    for (int i = 0; i < 8; ++i) bits();
  }
  uint32_t bits() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>((state_ * 0x2545f4914f6cdd1du) >> 32);
  }
  int integer(int low, int high) {  // both included
    return low + static_cast<int>(bits() % static_cast<uint32_t>(high - low + 1));
  }
  float uniform(float low, float high) { return low + (high - low) * (static_cast<float>(bits() >> 8) * 0x1p-24f); }

 private:
  uint64_t state_;
};

inline std::vector<float> random_floats(Random& random, size_t n, float limit) {
  std::vector<float> x(n);
  for (float& v : x) v = random.uniform(-limit, limit);
  return x;
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline bool same_bits(float a, float b) { return bits_of(a) == bits_of(b); }
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

inline float from_bf16(uint16_t x) { return float_of(static_cast<uint32_t>(x) << 16); }

// By comparing distances rather than by the usual integer trick, so that the trick is what gets tested.
inline uint16_t to_bf16(float x) {
  const uint16_t down = static_cast<uint16_t>(bits_of(x) >> 16);  // towards zero
  if (std::isnan(x)) return static_cast<uint16_t>(down | 0x40);
  if (std::isinf(x)) return down;
  const uint16_t up = static_cast<uint16_t>(down + 1);
  // Beyond the largest finite value the next step stands for 2^128, as IEEE 754 rounds overflow.
  const double above = std::isinf(from_bf16(up)) ? std::copysign(0x1p128, x) : from_bf16(up);
  const double to_down = std::fabs(double{x} - from_bf16(down)), to_up = std::fabs(above - double{x});
  if (to_down != to_up) return to_down < to_up ? down : up;
  return down % 2 == 0 ? down : up;
}

inline std::vector<uint16_t> random_bf16(Random& random, size_t n, float limit) {
  std::vector<uint16_t> x(n);
  for (uint16_t& v : x) v = to_bf16(random.uniform(-limit, limit));
  return x;
}

inline size_t sz(int n) { return static_cast<size_t>(n); }

}  // namespace aegis::test

// What this machine can do at most: the yardsticks of the benchmark and of `doctor`.
#pragma once

#include "isa/kernels.h"

namespace aegis {

// Multiply-adds of int8 from registers alone, all threads at once, in operations (2 a multiply-add) a second.
double measure_int8_peak(const Kernels& kernels, int threads, double seconds);

// Reading `megabytes` a thread once and again, in bytes a second, all threads at once.
double measure_read_bandwidth(int threads, int megabytes, double seconds);

}  // namespace aegis

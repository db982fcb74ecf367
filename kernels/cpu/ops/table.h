// The table of one instruction set: every operator, instantiated over its primitives.
#pragma once

#include "ops/attention.h"
#include "ops/gemm.h"
#include "ops/peak.h"
#include "ops/rows.h"

namespace aegis {
namespace {

template <class V>
constexpr Kernels make_kernels(const char* name) {
  Kernels k{};
  k.name = name;
  k.activation_offset = V::kActivationOffset;
  k.int8_depth = V::kInt8Depth;
  k.norm = Rows<V>::norm;
  k.norm_add = Rows<V>::norm_add;
  k.norm_bf16 = Rows<V>::norm_bf16;
  k.norm_int8 = Rows<V>::norm_int8;
  k.quantise = Rows<V>::quantise;
  k.to_bf16 = Rows<V>::to_bf16;
  k.from_bf16 = Rows<V>::from_bf16;
  k.hadamard = Rows<V>::hadamard;
  k.hadamard_int8 = Rows<V>::hadamard_int8;
  k.rope = Rows<V>::rope;
  k.dot = Rows<V>::dot;
  if constexpr (V::kInt8Depth == 8) {
    k.gemm_int8 = GemmOp<V, Int8Pairs<V>>::run;
    k.peak_int8 = peak_int8_pairs<V>;
  } else {
    k.gemm_int8 = GemmOp<V, Int8Dot<V>>::run;
    k.peak_int8 = peak_int8<V>;
  }
  k.gemm_bf16 = GemmOp<V, Bf16Dot<V>>::run;
  k.attend = AttentionOp<V>::run;
  k.unpack_int4 = unpack_int4<V>;
  return k;
}

}  // namespace
}  // namespace aegis

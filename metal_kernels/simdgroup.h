// What the kernels share: the width of a SIMD-group and a sum over it.
#pragma once
#include <metal_stdlib>

constant constexpr int LANES = 32;

// Small arrays stay in registers only if every index is known at compile time.
#define UNROLL _Pragma("clang loop unroll(full)")

// Every lane brings 32 terms; lane s leaves with the sum of all lanes' term s. 31 shuffles
// where 32 calls of simd_sum would take 160: each step hands half of the terms that are
// still open to the lane that will need them.
inline float sum_by_lane(thread float* terms, uint lane) {
  UNROLL
  for (int half_lanes = LANES / 2; half_lanes > 0; half_lanes /= 2) {
    const bool upper = (lane & half_lanes) != 0;
    UNROLL
    for (int s = 0; s < half_lanes; ++s) {
      const float keep = upper ? terms[s + half_lanes] : terms[s];
      const float give = upper ? terms[s] : terms[s + half_lanes];
      terms[s] = keep + metal::simd_shuffle_xor(give, half_lanes);
    }
  }
  return terms[0];
}

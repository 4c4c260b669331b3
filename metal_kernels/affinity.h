// Memory affinity of one token, and the choice of its rows. One SIMD-group per token; a lane
// holds the logits of the rows lane, lane + 32, ... in registers. The k-th largest logit is
// built bit by bit from the count of logits that are at least as large: 32 counts, whatever k
// is. Of equal logits the first rows are taken. The softmax over all m rows and the division by
// the sum of the k largest cancel to one division:
// alpha_i = exp((l_i - max) / tau) / sum over active j of exp((l_j - max) / tau).
#pragma once
#include "simdgroup.h"

// Unsigned integers above 0 that order like the floats, and -0 like +0.
inline uint order_key(float number) {
  const uint bits = as_type<uint>(number == 0.0f ? 0.0f : number);
  return metal::max((bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u, 1u);
}

// The key of the k-th largest row. Lanes fill up with key 0.
template <int per_lane>
inline uint kth_largest(thread const uint* key, int num_active) {
  uint threshold = 0u;
  for (uint bit = 0x80000000u; bit != 0u; bit >>= 1) {
    int count = 0;
    UNROLL
    for (int j = 0; j < per_lane; ++j) {
      count += key[j] >= (threshold | bit) ? 1 : 0;
    }
    if (metal::simd_sum(count) >= num_active) {
      threshold |= bit;
    }
  }
  return threshold;
}

// The logits of this lane's rows, which of them are active, and the largest logit of all rows.
template <int per_lane, typename Routing>
inline float active_rows(
    Routing logits,
    thread float* logit,
    thread bool* active,
    int num_rows,
    int num_active,
    uint lane) {
  uint key[per_lane];
  float largest = -INFINITY;
  UNROLL
  for (int j = 0; j < per_lane; ++j) {
    const int row = lane + j * LANES;
    logit[j] = row < num_rows ? float(logits[row]) : -INFINITY;
    key[j] = row < num_rows ? order_key(logit[j]) : 0u;
    largest = metal::max(largest, logit[j]);
  }
  largest = metal::simd_max(largest);
  const uint threshold = kth_largest<per_lane>(key, num_active);
  int above = 0;
  UNROLL
  for (int j = 0; j < per_lane; ++j) {
    above += key[j] > threshold ? 1 : 0;
  }
  int equals_wanted = num_active - metal::simd_sum(above);
  UNROLL
  for (int j = 0; j < per_lane; ++j) {
    const int equal = key[j] == threshold ? 1 : 0;
    const int equals_before = metal::simd_prefix_exclusive_sum(equal);
    active[j] = key[j] > threshold || (equal == 1 && equals_before < equals_wanted);
    equals_wanted -= metal::simd_sum(equal);
  }
  return largest;
}

// alpha of this lane's rows and which of them are active.
template <int per_lane, typename Routing>
inline void affinity(
    Routing logits,
    thread float* alpha,
    thread bool* active,
    int num_rows,
    int num_active,
    float temperature,
    uint lane) {
  float logit[per_lane];
  const float largest =
      active_rows<per_lane>(logits, logit, active, num_rows, num_active, lane);
  float total = 0.0f;
  UNROLL
  for (int j = 0; j < per_lane; ++j) {
    alpha[j] = active[j] ? metal::exp((logit[j] - largest) / temperature) : 0.0f;
    total += alpha[j];
  }
  total = metal::simd_sum(total);
  UNROLL
  for (int j = 0; j < per_lane; ++j) {
    alpha[j] /= total;
  }
}

inline float sigmoid(float x) {
  return 1.0f / (1.0f + metal::exp(-x));
}

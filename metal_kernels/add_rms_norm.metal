// The residual stream's sum and its norm (reference op: add_rms_norm in fm_mlx/ops/block.py):
//
//   x, update (tokens, hidden) of type T, weight (hidden) float
//   -> total = x + update, normed = total / rms(total) * weight, both of type T, and in_float =
//      normed as float, if it is asked for
//
// One threadgroup per token; each thread owns the numbers thread_index,
// thread_index + threads, ... and keeps them in registers until the norm is known.
#include "simdgroup.h"

// What stands for an output that is not asked for.
struct Nothing {};

inline void put(device float* output, size_t position, float number) {
  output[position] = number;
}

inline void put(Nothing, size_t, float) {}

template <typename T, int per_thread, typename Numbers, typename Weight, typename InFloat>
inline void add_rms_norm(
    Numbers x,
    Numbers update,
    Weight weight,
    device T* total,
    device T* normed,
    InFloat in_float,
    threadgroup float* partial,
    int hidden,
    float eps,
    uint token,
    uint thread_index,
    uint threads,
    uint simdgroup,
    uint simdgroups,
    uint lane) {
  x += size_t(token) * hidden;
  update += size_t(token) * hidden;
  total += size_t(token) * hidden;
  normed += size_t(token) * hidden;

  float sum[per_thread];
  float square = 0.0f;
  UNROLL
  for (int c = 0; c < per_thread; ++c) {
    const int column = thread_index + c * threads;
    if (column < hidden) {
      // the norm is that of the sum as it is kept, rounding and all
      const T rounded = T(float(x[column]) + float(update[column]));
      total[column] = rounded;
      sum[c] = float(rounded);
      square += sum[c] * sum[c];
    }
  }
  const float of_simdgroup = metal::simd_sum(square);
  if (lane == 0) {
    partial[simdgroup] = of_simdgroup;
  }
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  float norm = 0.0f;
  for (uint g = 0; g < simdgroups; ++g) {
    norm += partial[g];
  }
  const float inverse_rms = metal::rsqrt(norm / float(hidden) + eps);
  UNROLL
  for (int c = 0; c < per_thread; ++c) {
    const int column = thread_index + c * threads;
    if (column < hidden) {
      const T number = T(sum[c] * inverse_rms * weight[column]);
      normed[column] = number;
      put(in_float, size_t(token) * hidden + column, float(number));
    }
  }
}

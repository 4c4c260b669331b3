// One token on k rows of the memory (reference op: sparse_update in fm_mlx/ops/step.py):
//
//   indices, theta, phi (B, k), value (B, d) of type T, state (B, m, d)
//   -> rows (B, k, d) = (1 - theta) h + theta v, y (B, d) = sum_i phi_i rows_i / rms(rows_i)
//
// One threadgroup per token of the batch. Each thread owns the numbers thread_index,
// thread_index + threads, ...: it reads every number of the k rows once, keeps it in a
// register until the row's norm is known, and writes it once. m does not enter.
// ROWS rows at a time share the two barriers of their norms.
#include "memory_norm.h"
#include "simdgroup.h"

constant constexpr int ROWS = 8;

template <typename T, int per_thread, typename Indices, typename Weights, typename State, typename Value>
inline void sparse_update(
    Indices indices,
    Weights theta,
    Weights phi,
    Value value,
    State state,
    bool active,
    device float* rows,
    device T* y,
    threadgroup float* partial,
    int num_active,
    int num_rows,
    int width,
    float eps,
    uint batch,
    uint thread_index,
    uint threads,
    uint simdgroup,
    uint simdgroups,
    uint lane) {
  indices += size_t(batch) * num_active;
  theta += size_t(batch) * num_active;
  phi += size_t(batch) * num_active;
  value += size_t(batch) * width;
  y += size_t(batch) * width;
  state += size_t(batch) * num_rows * width;
  rows += size_t(batch) * num_active * width;

  float new_value[per_thread];
  float sum[per_thread];
  UNROLL
  for (int c = 0; c < per_thread; ++c) {
    const int column = thread_index + c * threads;
    new_value[c] = active && column < width ? float(value[column]) : 0.0f;
    sum[c] = 0.0f;
  }
  for (int first = 0; first < num_active; first += ROWS) {
    float written[ROWS][per_thread];
    float square[ROWS];
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
      const int slot = first + r;
      square[r] = 0.0f;
      if (slot < num_active) {
        // a masked token may carry any number, NaN too: it must not even be multiplied by 0
        const float write = active ? float(theta[slot]) : 0.0f;
        const size_t row = size_t(indices[slot]) * width;
        UNROLL
        for (int c = 0; c < per_thread; ++c) {
          const int column = thread_index + c * threads;
          if (column < width) {
            const float number = (1.0f - write) * state[row + column] + write * new_value[c];
            written[r][c] = number;
            rows[size_t(slot) * width + column] = number;
            square[r] += number * number;
          } else {
            written[r][c] = 0.0f;
          }
        }
      }
    }
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
      const float sum_of_squares = metal::simd_sum(square[r]);
      if (lane == 0) {
        partial[r * LANES + simdgroup] = sum_of_squares;
      }
    }
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
      const int slot = first + r;
      if (slot < num_active) {
        float norm = 0.0f;
        for (uint g = 0; g < simdgroups; ++g) {
          norm += partial[r * LANES + g];
        }
        const float merge = active ? float(phi[slot]) : 0.0f;
        const float query = merge * inverse_rms(norm, float(width), eps);
        UNROLL
        for (int c = 0; c < per_thread; ++c) {
          sum[c] += query * written[r][c];
        }
      }
    }
    // the next rows' sums go where these were
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  }
  UNROLL
  for (int c = 0; c < per_thread; ++c) {
    const int column = thread_index + c * threads;
    if (column < width) {
      y[column] = T(sum[c]);
    }
  }
}

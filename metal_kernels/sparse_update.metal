// One token on the k rows it is most affine to (reference op: sparse_update in
// fm_mlx/ops/step.py):
//
//   scores (B, m + 2), or (B, 2 sqrt(m) + 2) with product keys, value (B, d) of type T,
//   state (B, m, d), and what the last token wrote, which the state has: the last k of
//   last_indices (B, n) and last_rows (B, n, d)
//   -> theta, phi (B, k) of the active rows, h = (1 - theta) h + theta v,
//      y (B, d) = sum_i phi_i h_i / rms(h_i),
//      and what both tokens wrote, indices (B, 2k) and rows (B, 2k, d), this one's at the end: a
//      row that both wrote is there twice, as it is now, so that the order of writing is free.
//
// One threadgroup per token of the batch. Its first SIMD-group chooses the rows. Each thread
// owns the numbers thread_index, thread_index + threads, ...: it reads every number of the k rows
// once, keeps it in a register until the row's norm is known, and writes it once. Of the state,
// m does not enter. ROWS rows at a time share the two barriers of their norms.
#include "affinity.h"
#include "memory_norm.h"
#include "simdgroup.h"

constant constexpr int ROWS = 8;

// Where each active row of this lane stands among all active ones, which rise from lane to lane
// and then by LANES.
template <int per_lane>
inline void slots_of_active(thread const bool* active, thread int* slot) {
  int before = 0;
  UNROLL
  for (int j = 0; j < per_lane; ++j) {
    slot[j] = before + metal::simd_prefix_exclusive_sum(active[j] ? 1 : 0);
    before += metal::simd_sum(active[j] ? 1 : 0);
  }
}

// Every row by its own logit.
template <typename Scores>
struct OwnLogits {
  Scores logits;
  float operator[](int candidate) const {
    return float(logits[candidate]);
  }
  int row(int candidate) const {
    return candidate;
  }
};

// The rows i n + j, rising, whose i and j are among the best `kept` of their halves of n logits.
template <typename Scores>
struct ProductKeys {
  Scores logits;
  threadgroup const int* best;  // kept numbers of the first half, then as many of the second
  int half_length;
  int kept;
  float operator[](int candidate) const {
    return float(logits[best[candidate / kept]]) +
        float(logits[half_length + best[kept + candidate % kept]]);
  }
  int row(int candidate) const {
    return best[candidate / kept] * half_length + best[kept + candidate % kept];
  }
};

// The k active rows among the candidates, rising, and their weights.
template <int per_lane, typename Candidates, typename Rates>
inline void choose_rows(
    Candidates candidates,
    Rates rates,
    device int* indices,
    device float* theta,
    device float* phi,
    int count,
    int num_active,
    float temperature,
    uint lane) {
  float alpha[per_lane];
  bool active[per_lane];
  int slot[per_lane];
  affinity<per_lane>(candidates, alpha, active, count, num_active, temperature, lane);
  slots_of_active<per_lane>(active, slot);
  const float update_rate = sigmoid(float(rates[0]));
  const float merge_rate = sigmoid(float(rates[1]));
  UNROLL
  for (int j = 0; j < per_lane; ++j) {
    if (active[j]) {
      indices[slot[j]] = candidates.row(lane + j * LANES);
      theta[slot[j]] = update_rate * alpha[j];
      phi[slot[j]] = merge_rate * alpha[j];
    }
  }
}

// The numbers of the best `kept` logits of each half, rising.
template <int per_lane, typename Scores>
inline void best_of_halves(
    Scores logits, threadgroup int* best, int half_length, int kept, uint lane) {
  float logit[per_lane];
  bool active[per_lane];
  int slot[per_lane];
  for (int half_index = 0; half_index < 2; ++half_index) {
    active_rows<per_lane>(
        logits + half_index * half_length, logit, active, half_length, kept, lane);
    slots_of_active<per_lane>(active, slot);
    UNROLL
    for (int j = 0; j < per_lane; ++j) {
      if (active[j]) {
        best[half_index * kept + slot[j]] = lane + j * LANES;
      }
    }
  }
  metal::simdgroup_barrier(metal::mem_flags::mem_threadgroup);
}

// Where a row stands among k rising ones, or k.
inline int position(int row, device const int* rising, int count) {
  int first = 0;
  int last = count;
  while (first < last) {
    const int middle = (first + last) / 2;
    if (rising[middle] < row) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return first < count && rising[first] == row ? first : count;
}

// The candidates are those of this token; everything else is of the whole batch.
template <typename T, int per_thread, int per_lane, typename Candidates, typename Rates, typename Value, typename State, typename Indices, typename Rows>
inline void sparse_update(
    Candidates candidates,
    Rates rates,
    int num_candidates,
    Value value,
    State state,
    Indices last_indices,
    Rows last_rows,
    bool active,
    device int* indices,
    device float* rows,
    device T* y,
    device float* theta,
    device float* phi,
    threadgroup float* partial,
    int last_count,
    int num_active,
    int num_rows,
    int width,
    float temperature,
    float eps,
    uint batch,
    uint thread_index,
    uint threads,
    uint simdgroup,
    uint simdgroups,
    uint lane) {
  value += size_t(batch) * width;
  state += size_t(batch) * num_rows * width;
  theta += size_t(batch) * num_active;
  phi += size_t(batch) * num_active;
  y += size_t(batch) * width;
  const size_t before = size_t(batch) * last_count + (last_count - num_active);
  last_indices += before;
  last_rows += before * width;
  indices += size_t(batch) * 2 * num_active;
  rows += size_t(batch) * 2 * num_active * width;
  device int* own = indices + num_active;
  device float* own_rows = rows + size_t(num_active) * width;

  if (simdgroup == 0) {
    choose_rows<per_lane>(
        candidates, rates, own, theta, phi, num_candidates, num_active, temperature, lane);
  }
  metal::threadgroup_barrier(metal::mem_flags::mem_device);

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
        const size_t row = size_t(own[slot]) * width;
        UNROLL
        for (int c = 0; c < per_thread; ++c) {
          const int column = thread_index + c * threads;
          if (column < width) {
            const float number = (1.0f - write) * state[row + column] + write * new_value[c];
            written[r][c] = number;
            own_rows[size_t(slot) * width + column] = number;
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
  for (int slot = 0; slot < num_active; ++slot) {
    const int row = last_indices[slot];
    const int again = position(row, own, num_active);
    if (thread_index == 0) {
      indices[slot] = row;
    }
    UNROLL
    for (int c = 0; c < per_thread; ++c) {
      const int column = thread_index + c * threads;
      if (column < width) {
        rows[size_t(slot) * width + column] = again < num_active
            ? own_rows[size_t(again) * width + column]
            : last_rows[size_t(slot) * width + column];
      }
    }
  }
}

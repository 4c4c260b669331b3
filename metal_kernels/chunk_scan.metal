// The inside of a chunk of the scan (reference op: fm_mlx/ops/chunk_map.py):
//
//   theta, phi, projection  (chunks, C, m)     gram (chunks, C, C)     norm0 (chunks, m)
//   -> read = qA (chunks, C, m), inside = M (chunks, C, C);  C <= 32, all float32
//
// One threadgroup per chunk. A lane carries one row i through the tokens t of the chunk,
// with the weights w_ts of the values in its row in registers:
//
//   a = 1 - theta_t,  p_t = A_{t-1} P_t + sum_{s<t} w_s G_ts
//   n_t = a^2 n_{t-1} + theta_t (2 a p_t + theta_t G_tt)
//   A_t = a A_{t-1},  w_s <- a w_s,  w_t = theta_t,  q_t = phi_t / sqrt(n_t / d + eps)
//
// Decays are multiplied step by step: no exponent, no quotient, exact at theta = 1.
// Threadgroup memory: gram C x 32 floats and one such block of partial sums per SIMD-group.
#include "memory_norm.h"
#include "simdgroup.h"

// G's lower triangle as 32 x 32 with zeros elsewhere: what comes later must not reach a
// token, not even as 0 * infinity.
template <typename Gram>
inline void load_causal(
    Gram gram, threadgroup float* causal, int tokens, uint thread_index, uint threads) {
  for (uint i = thread_index; i < uint(LANES * LANES); i += threads) {
    const int t = i / LANES;
    const int s = i % LANES;
    causal[i] = t < tokens && s <= t ? gram[t * tokens + s] : 0.0f;
  }
}

template <typename Weights, typename Gram, typename Norm>
inline void chunk_scan(
    Weights theta,
    Weights phi,
    Gram gram,
    Weights projection,
    Norm norm0,
    device float* read,
    device float* inside,
    threadgroup float* causal_gram,
    threadgroup float* partial,
    int tokens,
    int rows,
    float width,
    float eps,
    uint chunk,
    uint simdgroup,
    uint simdgroups,
    uint lane) {
  const size_t first_item = size_t(chunk) * tokens * rows;
  theta += first_item;
  phi += first_item;
  projection += first_item;
  read += first_item;
  gram += size_t(chunk) * tokens * tokens;
  inside += size_t(chunk) * tokens * tokens;
  norm0 += size_t(chunk) * rows;

  const uint thread_index = simdgroup * LANES + lane;
  const uint threads = simdgroups * LANES;
  load_causal(gram, causal_gram, tokens, thread_index, threads);
  threadgroup float* own = partial + simdgroup * LANES * LANES;
  for (int t = 0; t < tokens; ++t) {
    own[t * LANES + lane] = 0.0f;
  }
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);

  for (int first = simdgroup * LANES; first < rows; first += threads) {
    const int row = first + lane;
    const bool exists = row < rows;
    float weight[LANES];
    UNROLL
    for (int s = 0; s < LANES; ++s) {
      weight[s] = 0.0f;
    }
    float decay = 1.0f;
    float norm = exists ? norm0[row] : 0.0f;
    for (int t = 0; t < tokens; ++t) {
      const int item = t * rows + row;
      const float write = exists ? theta[item] : 0.0f;
      const float merge = exists ? phi[item] : 0.0f;
      const float keep = 1.0f - write;
      threadgroup const float* gram_t = causal_gram + t * LANES;
      float inner = exists ? decay * projection[item] : 0.0f;
      UNROLL
      for (int s = 0; s < LANES; ++s) {
        inner += weight[s] * gram_t[s];
      }
      norm = keep * keep * norm + write * (2.0f * keep * inner + write * gram_t[t]);
      decay *= keep;
      const float query = merge * inverse_rms(metal::max(norm, 0.0f), width, eps);
      if (exists) {
        read[item] = query * decay;
      }
      float terms[LANES];
      UNROLL
      for (int s = 0; s < LANES; ++s) {
        weight[s] = s == t ? write : keep * weight[s];
        terms[s] = query * weight[s];
      }
      own[t * LANES + lane] += sum_by_lane(terms, lane);
    }
  }

  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  for (uint i = thread_index; i < uint(tokens * tokens); i += threads) {
    const int slot = (i / tokens) * LANES + i % tokens;
    float sum = 0.0f;
    for (uint g = 0; g < simdgroups; ++g) {
      sum += partial[g * LANES * LANES + slot];
    }
    inside[i] = sum;
  }
}

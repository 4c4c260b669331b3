// The vjp of chunk_scan (reference op: the vjp of that in fm_mlx/ops/chunk_map.py). Shapes as there, and
//
//   d_read (chunks, C, m), d_inside (chunks, C, C)
//   -> d_theta, d_phi, d_projection (chunks, C, m), d_gram (chunks, C, C), d_norm0 (chunks, m)
//
// A lane carries one row. The forward recurrence runs once more for the norms n_t, which
// stay in threadgroup memory; then time runs backwards with the cotangents of n_t, of A_t
// and of w_ts for every s. A_{t-1} and w_{t-1,s} = theta_s prod_{s<r<t} a_r are multiplied
// up anew for each t, because a decay of 0 cannot be divided out.
#include "chunk_scan.metal"

template <typename Weights, typename Gram, typename Norm>
inline void chunk_scan_vjp(
    Weights theta,
    Weights phi,
    Gram gram,
    Weights projection,
    Norm norm0,
    Weights d_read,
    Gram d_inside,
    device float* d_theta,
    device float* d_phi,
    device float* d_gram,
    device float* d_projection,
    device float* d_norm0,
    threadgroup float* causal_gram,
    threadgroup float* causal_d_inside,
    threadgroup float* partial,
    threadgroup float* norms,
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
  d_read += first_item;
  d_theta += first_item;
  d_phi += first_item;
  d_projection += first_item;
  gram += size_t(chunk) * tokens * tokens;
  d_inside += size_t(chunk) * tokens * tokens;
  d_gram += size_t(chunk) * tokens * tokens;
  norm0 += size_t(chunk) * rows;
  d_norm0 += size_t(chunk) * rows;

  const uint thread_index = simdgroup * LANES + lane;
  const uint threads = simdgroups * LANES;
  load_causal(gram, causal_gram, tokens, thread_index, threads);
  load_causal(d_inside, causal_d_inside, tokens, thread_index, threads);
  threadgroup float* own = partial + simdgroup * LANES * LANES;
  threadgroup float* norm_of = norms + simdgroup * LANES * LANES;
  for (int t = 0; t < tokens; ++t) {
    own[t * LANES + lane] = 0.0f;
  }
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);

  for (int first = simdgroup * LANES; first < rows; first += threads) {
    const int row = first + lane;
    const bool exists = row < rows;
    float write[LANES];
    float weight[LANES];
    UNROLL
    for (int s = 0; s < LANES; ++s) {
      write[s] = exists && s < tokens ? theta[s * rows + row] : 0.0f;
      weight[s] = 0.0f;
    }

    const float start_norm = exists ? norm0[row] : 0.0f;
    float decay = 1.0f;
    float norm = start_norm;
    for (int t = 0; t < tokens; ++t) {
      const float write_t = exists ? theta[t * rows + row] : 0.0f;
      const float keep = 1.0f - write_t;
      threadgroup const float* gram_t = causal_gram + t * LANES;
      float inner = exists ? decay * projection[t * rows + row] : 0.0f;
      UNROLL
      for (int s = 0; s < LANES; ++s) {
        inner += weight[s] * gram_t[s];
      }
      norm = keep * keep * norm + write_t * (2.0f * keep * inner + write_t * gram_t[t]);
      decay *= keep;
      UNROLL
      for (int s = 0; s < LANES; ++s) {
        weight[s] = s == t ? write_t : keep * weight[s];
      }
      norm_of[t * LANES + lane] = norm;
    }

    float d_weight[LANES];
    UNROLL
    for (int s = 0; s < LANES; ++s) {
      d_weight[s] = 0.0f;
    }
    float d_decay = 0.0f;
    float d_norm = 0.0f;
    for (int t = tokens - 1; t >= 0; --t) {
      const int item = t * rows + row;
      const float merge = exists ? phi[item] : 0.0f;
      const float seen = exists ? projection[item] : 0.0f;
      const float d_read_t = exists ? d_read[item] : 0.0f;
      threadgroup const float* gram_t = causal_gram + t * LANES;
      threadgroup const float* d_inside_t = causal_d_inside + t * LANES;

      // theta_t, and the state of the recurrence before token t
      float write_t = 0.0f;
      float before = 1.0f;
      float inner = 0.0f;
      UNROLL
      for (int s = LANES - 1; s >= 0; --s) {
        write_t = s == t ? write[s] : write_t;
        weight[s] = s < t ? write[s] * before : 0.0f;
        before *= s < t ? 1.0f - write[s] : 1.0f;
        inner += weight[s] * gram_t[s];
      }
      inner += before * seen;
      const float keep = 1.0f - write_t;
      const float norm_before = t > 0 ? norm_of[(t - 1) * LANES + lane] : start_norm;
      const float norm_now = norm_of[t * LANES + lane];
      const float root = inverse_rms(metal::max(norm_now, 0.0f), width, eps);
      const float query = merge * root;

      // qA_t = q_t A_t and M_ts = q_t w_ts
      float d_query = d_read_t * before * keep + d_inside_t[t] * write_t;
      UNROLL
      for (int s = 0; s < LANES; ++s) {
        d_query += d_inside_t[s] * keep * weight[s];
        d_weight[s] += query * d_inside_t[s];
      }
      d_decay += query * d_read_t;
      d_norm += norm_now > 0.0f ? d_query * merge * inverse_rms_slope(root, width) : 0.0f;

      // n_t = a^2 n_{t-1} + theta (2 a p + theta G_tt)
      const float d_inner = 2.0f * d_norm * write_t * keep;
      float d_write = 2.0f * d_norm * (keep * inner + write_t * gram_t[t]);
      float d_keep = 2.0f * d_norm * (keep * norm_before + write_t * inner);
      const float d_square = d_norm * write_t * write_t;
      d_norm *= keep * keep;

      // A_t = a A_{t-1}, w_ts = a w_{t-1,s}, w_tt = theta, p = A_{t-1} P_t + sum_s w_{t-1,s} G_ts
      d_keep += d_decay * before;
      d_decay = keep * d_decay + d_inner * seen;
      float terms[LANES];
      UNROLL
      for (int s = 0; s < LANES; ++s) {
        d_write += s == t ? d_weight[s] : 0.0f;
        d_keep += d_weight[s] * weight[s];
        d_weight[s] = keep * d_weight[s] + d_inner * gram_t[s];
        terms[s] = s == t ? d_square : d_inner * weight[s];
      }
      own[t * LANES + lane] += sum_by_lane(terms, lane);
      if (exists) {
        d_theta[item] = d_write - d_keep;
        d_phi[item] = d_query * root;
        d_projection[item] = d_inner * before;
      }
    }
    if (exists) {
      d_norm0[row] = d_norm;
    }
  }

  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  for (uint i = thread_index; i < uint(tokens * tokens); i += threads) {
    const int slot = (i / tokens) * LANES + i % tokens;
    float sum = 0.0f;
    for (uint g = 0; g < simdgroups; ++g) {
      sum += partial[g * LANES * LANES + slot];
    }
    d_gram[i] = sum;
  }
}

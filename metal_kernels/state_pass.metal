// Chunk-start states (reference op: fm_mlx/ops/state_pass.py), H_{n+1} = decay_n * H_n + increment_n:
//
//   decay (B, N, m), increment (B, N, m, d), state (B, m, d)
//   -> starts (B, N, m, d), last (B, m, d); all float32
//
// Forwards, starts_n = H_n from H_0 = state and last = H_N. In reverse, which is what the
// vjp wants, starts_n = L_{n+1} from L_N = state, L_n = decay_n * L_{n+1} + increment_n, and
// last = L_0. One thread per number of the state; what it carries stays in registers.
//
// What rounding takes from the carried number is kept beside it (two-sum, two-product), so
// that the error does not grow with the number of chunks: a float alone loses 3e-4 of the
// state over a million tokens when the decay is 1 - 2^-24. Bandwidth hides the arithmetic.
#include <metal_stdlib>

template <bool reverse, typename Decay, typename Increment, typename State>
inline void state_pass(
    Decay decay,
    Increment increment,
    State state,
    device float* starts,
    device float* last,
    int chunks,
    int rows,
    int width,
    uint element,
    uint batch) {
  const size_t size = size_t(rows) * width;
  const size_t place = batch * size + element;
  const int row = element / width;
  float carried = state[place];
  float rest = 0.0f;
  for (int i = 0; i < chunks; ++i) {
    const size_t chunk = size_t(batch) * chunks + (reverse ? chunks - 1 - i : i);
    starts[chunk * size + element] = carried;
    const float keep = decay[chunk * rows + row];
    const float added = increment[chunk * size + element];
    const float product = keep * carried;
    const float product_error = metal::fma(keep, carried, -product);
    const float sum = product + added;
    const float gained = sum - product;
    const float sum_error = (product - (sum - gained)) + (added - gained);
    rest = keep * rest + (product_error + sum_error);
    carried = sum + rest;
    rest -= carried - sum;
  }
  last[place] = carried;
}

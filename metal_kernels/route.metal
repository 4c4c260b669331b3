// How strongly a token writes and reads every row (reference op: route_dense in
// fm_mlx/ops/routing.py):
//
//   routing (tokens, m + 2) of type T: m logits, then the update and the merge rate before
//   the sigmoid -> theta = eta alpha and phi = mu alpha, (tokens, m) float32, 0 where a row is
//   not active.
#include "affinity.h"

template <int per_lane, typename Routing>
inline void route_dense(
    Routing routing,
    device float* theta,
    device float* phi,
    int num_rows,
    int num_active,
    float temperature,
    uint token,
    uint lane) {
  routing += size_t(token) * (num_rows + 2);
  theta += size_t(token) * num_rows;
  phi += size_t(token) * num_rows;
  float alpha[per_lane];
  bool active[per_lane];
  affinity<per_lane>(routing, alpha, active, num_rows, num_active, temperature, lane);
  const float update_rate = sigmoid(float(routing[num_rows]));
  const float merge_rate = sigmoid(float(routing[num_rows + 1]));
  UNROLL
  for (int j = 0; j < per_lane; ++j) {
    const int row = lane + j * LANES;
    if (row < num_rows) {
      theta[row] = update_rate * alpha[j];
      phi[row] = merge_rate * alpha[j];
    }
  }
}

// The norm of a row of the memory, from the sum of its squares (fm_mlx/ops/memory_norm.py).
#pragma once
#include <metal_stdlib>

// What a row is multiplied by when it is read.
inline float inverse_rms(float squares, float width, float eps) {
  return metal::rsqrt(squares / width + eps);
}

// Its derivative by the sum of squares.
inline float inverse_rms_slope(float inverse, float width) {
  return -0.5f * inverse * inverse * inverse / width;
}

// Lengths, products and directions of vectors; the namespaces fast and precise.
#pragma once

#include "msl_overloads.h"

namespace metal {
// Of the vector type V with components of type T.
#define MSL_GEOMETRY(V, T)                                                     \
  inline T dot(V a, V b) {                                                     \
    T sum = (T)(a[0] * b[0]);                                                  \
    for (int i = 1; i < msl_shape<V>::size; ++i) sum = (T)(sum + a[i] * b[i]); \
    return sum;                                                                \
  }                                                                            \
  inline T length_squared(V a) { return dot(a, a); }                           \
  inline T length(V a) { return sqrt(dot(a, a)); }                             \
  inline T distance_squared(V a, V b) { return length_squared(a - b); }        \
  inline T distance(V a, V b) { return length(a - b); }                        \
  inline V normalize(V a) { return a * rsqrt(dot(a, a)); }                     \
  inline V faceforward(V normal, V incident, V reference) {                    \
    return dot(reference, incident) < (T)0 ? normal : -normal;                 \
  }                                                                            \
  inline V reflect(V incident, V normal) {                                     \
    return incident - (T)((T)2 * dot(normal, incident)) * normal;              \
  }                                                                            \
  inline V refract(V incident, V normal, T ratio) {                            \
    T cosine = dot(normal, incident);                                          \
    T k = (T)((T)1 - ratio * ratio * ((T)1 - cosine * cosine));                \
    if (k < (T)0) return V((T)0);                                              \
    return ratio * incident - (T)(ratio * cosine + sqrt(k)) * normal;          \
  }
MSL_SIZES(MSL_GEOMETRY, float, float)
MSL_SIZES(MSL_GEOMETRY, half, half)
#undef MSL_GEOMETRY

inline float3 cross(float3 a, float3 b) { return a.yzx * b.zxy - a.zxy * b.yzx; }
inline half3 cross(half3 a, half3 b) { return a.yzx * b.zxy - a.zxy * b.yzx; }

#define MSL_MATH                                                                                   \
  using metal::abs, metal::acos, metal::acosh, metal::asin, metal::asinh, metal::atan,             \
      metal::atan2, metal::atanh, metal::ceil, metal::clamp, metal::copysign, metal::cos,          \
      metal::cosh, metal::cospi, metal::divide, metal::exp, metal::exp10, metal::exp2,             \
      metal::fabs, metal::fdim, metal::floor, metal::fma, metal::fmax, metal::fmax3,               \
      metal::fmedian3, metal::fmin, metal::fmin3, metal::fmod, metal::fract, metal::frexp,         \
      metal::isfinite, metal::isinf, metal::isnan, metal::ilogb, metal::ldexp, metal::log,         \
      metal::log10, metal::log2, metal::max, metal::max3, metal::median3, metal::min, metal::min3, \
      metal::mix, metal::modf, metal::nextafter, metal::pow, metal::powr, metal::rint,             \
      metal::round, metal::rsqrt, metal::saturate, metal::sign, metal::sin, metal::sincos,         \
      metal::sinh, metal::sinpi, metal::sqrt, metal::tan, metal::tanh, metal::tanpi, metal::trunc;
namespace fast {
MSL_MATH
}
namespace precise {
MSL_MATH
}
#undef MSL_MATH
}  // namespace metal

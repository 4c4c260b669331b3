// Tests of numbers, and selection by their results.
#pragma once

#include "msl_overloads.h"

namespace metal {
#define MSL_TESTS(type)                                                    \
  inline bool isnan(type x) { return __builtin_isnan((float)x); }          \
  inline bool isinf(type x) { return __builtin_isinf((float)x); }          \
  inline bool isfinite(type x) { return __builtin_isfinite((float)x); }    \
  inline bool signbit(type x) { return __builtin_signbit((float)x); }      \
  inline bool isnormal(type x) {                                           \
    float magnitude = __builtin_fabsf((float)x);                           \
    return magnitude >= (float)numeric_limits<type>::min() && isfinite(x); \
  }                                                                        \
  inline bool isordered(type x, type y) { return !isnan(x) && !isnan(y); } \
  inline bool isunordered(type x, type y) { return isnan(x) || isnan(y); }
MSL_TESTS(float)
MSL_TESTS(half)
MSL_TESTS(bfloat)
#undef MSL_TESTS

#define MSL_VECTOR_TESTS(type, n)                                    \
  MSL_EACH1(type##n, isnan, bool##n)                                 \
  MSL_EACH1(type##n, isinf, bool##n)                                 \
  MSL_EACH1(type##n, isfinite, bool##n)                              \
  MSL_EACH1(type##n, isnormal, bool##n)                              \
  MSL_EACH1(type##n, signbit, bool##n)                               \
  inline bool##n isordered(type##n x, type##n y) {                   \
    bool##n result;                                                  \
    for (int i = 0; i < n; ++i) result[i] = isordered(x[i], y[i]);   \
    return result;                                                   \
  }                                                                  \
  inline bool##n isunordered(type##n x, type##n y) {                 \
    bool##n result;                                                  \
    for (int i = 0; i < n; ++i) result[i] = isunordered(x[i], y[i]); \
    return result;                                                   \
  }
MSL_VECTOR_TESTS(float, 2)
MSL_VECTOR_TESTS(float, 3)
MSL_VECTOR_TESTS(float, 4)
MSL_VECTOR_TESTS(half, 2)
MSL_VECTOR_TESTS(half, 3)
MSL_VECTOR_TESTS(half, 4)
#undef MSL_VECTOR_TESTS

// A vector of truth values is a bool2, bool3 or bool4, or what clang's comparisons give.
template <class C, int N>
inline bool any(vec<C, N> condition) {
  for (int i = 0; i < N; ++i) {
    if (condition[i]) return true;
  }
  return false;
}
template <class C, int N>
inline bool all(vec<C, N> condition) {
  for (int i = 0; i < N; ++i) {
    if (!condition[i]) return false;
  }
  return true;
}
inline bool any(bool condition) { return condition; }
inline bool all(bool condition) { return condition; }

template <class T>
inline T select(T a, T b, bool condition) {
  return condition ? b : a;
}
#define MSL_SELECT(V, _)                                                                 \
  template <class C>                                                                     \
  inline V select(V a, V b, vec<C, msl_shape<V>::size> condition) {                      \
    V result;                                                                            \
    for (int i = 0; i < msl_shape<V>::size; ++i) result[i] = condition[i] ? b[i] : a[i]; \
    return result;                                                                       \
  }
MSL_FLOAT_VECTORS(MSL_SELECT, )
MSL_SIZES(MSL_SELECT, bfloat, )
MSL_SIZES(MSL_SELECT, bool, )
MSL_INTEGER_VECTORS(MSL_SELECT, )
#undef MSL_SELECT
}  // namespace metal

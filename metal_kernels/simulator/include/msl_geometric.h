// Selection, tests and products of vectors; the namespaces fast and precise.
#pragma once

namespace metal {
template <class T>
inline T select(T a, T b, bool condition) {
  return condition ? b : a;
}
template <class T, int N, class C>
inline vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<C, N> condition) {
  vec<T, N> result;
  for (int i = 0; i < N; ++i) result[i] = condition[i] ? b[i] : a[i];
  return result;
}
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
template <class T, int N>
inline T dot(vec<T, N> a, vec<T, N> b) {
  T sum = (T)(a[0] * b[0]);
  for (int i = 1; i < N; ++i) sum = (T)(sum + a[i] * b[i]);
  return sum;
}
template <class T, int N>
inline T length_squared(vec<T, N> a) {
  return dot(a, a);
}
template <class T, int N>
inline T length(vec<T, N> a) {
  return sqrt(dot(a, a));
}
template <class T, int N>
inline vec<T, N> normalize(vec<T, N> a) {
  return a * rsqrt(dot(a, a));
}

#define MSL_MATH                                                                                   \
  using metal::abs, metal::acos, metal::acosh, metal::asin, metal::asinh, metal::atan,             \
      metal::atan2, metal::atanh, metal::ceil, metal::clamp, metal::copysign, metal::cos,          \
      metal::cosh, metal::cospi, metal::divide, metal::exp, metal::exp10, metal::exp2,             \
      metal::fabs, metal::fdim, metal::floor, metal::fma, metal::fmax, metal::fmax3,               \
      metal::fmedian3, metal::fmin, metal::fmin3, metal::fmod, metal::fract, metal::frexp,         \
      metal::isfinite, metal::isinf, metal::isnan, metal::ldexp, metal::log, metal::log10,         \
      metal::log2, metal::max, metal::max3, metal::median3, metal::min, metal::min3, metal::mix,   \
      metal::nextafter, metal::pow, metal::powr, metal::rint, metal::round, metal::rsqrt,          \
      metal::saturate, metal::sign, metal::sin, metal::sincos, metal::sinh, metal::sinpi,          \
      metal::sqrt, metal::tan, metal::tanh, metal::tanpi, metal::trunc;
namespace fast {
MSL_MATH
}
namespace precise {
MSL_MATH
}
#undef MSL_MATH
}  // namespace metal

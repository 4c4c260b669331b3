// Functions of floating point numbers. As in Metal there are overloads for float, half and
// vectors of them, none for bfloat (MLX adds those) and none for double.
#pragma once

namespace metal {
// Exact where the result is -1, 0 or 1, as a product with pi is not.
inline float msl_sinpi(float x) {
  float turn = x - 2.f * __builtin_rintf(0.5f * x);  // in [-1, 1]
  float magnitude = __builtin_fabsf(turn);
  float folded = magnitude > 0.5f ? 1.f - magnitude : magnitude;
  return __builtin_copysignf(__builtin_sinf(M_PI_F * folded), turn);
}

#define MSL_FLOAT1(name, expression)                        \
  inline float name(float x) { return expression; }         \
  inline half name(half x) { return (half)name((float)x); } \
  template <class T, int N>                                 \
  inline vec<T, N> name(vec<T, N> x) {                      \
    vec<T, N> result;                                       \
    for (int i = 0; i < N; ++i) result[i] = name((T)x[i]);  \
    return result;                                          \
  }
MSL_FLOAT1(exp, __builtin_expf(x))
MSL_FLOAT1(exp2, __builtin_exp2f(x))
MSL_FLOAT1(exp10, __builtin_powf(10.f, x))
MSL_FLOAT1(log, __builtin_logf(x))
MSL_FLOAT1(log2, __builtin_log2f(x))
MSL_FLOAT1(log10, __builtin_log10f(x))
MSL_FLOAT1(sin, __builtin_sinf(x))
MSL_FLOAT1(cos, __builtin_cosf(x))
MSL_FLOAT1(tan, __builtin_tanf(x))
MSL_FLOAT1(asin, __builtin_asinf(x))
MSL_FLOAT1(acos, __builtin_acosf(x))
MSL_FLOAT1(atan, __builtin_atanf(x))
MSL_FLOAT1(sinh, __builtin_sinhf(x))
MSL_FLOAT1(cosh, __builtin_coshf(x))
MSL_FLOAT1(tanh, __builtin_tanhf(x))
MSL_FLOAT1(asinh, __builtin_asinhf(x))
MSL_FLOAT1(acosh, __builtin_acoshf(x))
MSL_FLOAT1(atanh, __builtin_atanhf(x))
MSL_FLOAT1(sinpi, msl_sinpi(x))
MSL_FLOAT1(cospi, msl_sinpi(0.5f - __builtin_fabsf(__builtin_fmodf(x, 2.f))))
MSL_FLOAT1(tanpi, sinpi(x) / cospi(x))
MSL_FLOAT1(sqrt, __builtin_sqrtf(x))
MSL_FLOAT1(rsqrt, 1.0f / __builtin_sqrtf(x))
MSL_FLOAT1(fabs, __builtin_fabsf(x))
MSL_FLOAT1(floor, __builtin_floorf(x))
MSL_FLOAT1(ceil, __builtin_ceilf(x))
MSL_FLOAT1(round, __builtin_roundf(x))
MSL_FLOAT1(rint, __builtin_rintf(x))
MSL_FLOAT1(trunc, __builtin_truncf(x))
// less than 1 even where the difference rounds to it
MSL_FLOAT1(fract, __builtin_fminf(x - __builtin_floorf(x), 0x1.fffffep-1f))
MSL_FLOAT1(sign, x > 0 ? 1.f : x < 0 ? -1.f : x == 0 ? x : 0.f)
MSL_FLOAT1(saturate, x < 0.f ? 0.f : x > 1.f ? 1.f : x)
#undef MSL_FLOAT1

#define MSL_FLOAT2(name, expression)                                          \
  inline float name(float x, float y) { return expression; }                  \
  inline half name(half x, half y) { return (half)name((float)x, (float)y); } \
  template <class T, int N>                                                   \
  inline vec<T, N> name(vec<T, N> x, vec<T, N> y) {                           \
    vec<T, N> result;                                                         \
    for (int i = 0; i < N; ++i) result[i] = name((T)x[i], (T)y[i]);           \
    return result;                                                            \
  }
MSL_FLOAT2(pow, __builtin_powf(x, y))
MSL_FLOAT2(powr, __builtin_powf(x, y))
MSL_FLOAT2(fmod, __builtin_fmodf(x, y))
MSL_FLOAT2(atan2, __builtin_atan2f(x, y))
MSL_FLOAT2(copysign, __builtin_copysignf(x, y))
MSL_FLOAT2(fmin, __builtin_fminf(x, y))
MSL_FLOAT2(fmax, __builtin_fmaxf(x, y))
MSL_FLOAT2(fdim, __builtin_fdimf(x, y))
MSL_FLOAT2(divide, x / y)
MSL_FLOAT2(step, y < x ? 0.f : 1.f)
MSL_FLOAT2(nextafter, __builtin_nextafterf(x, y))
#undef MSL_FLOAT2

inline float msl_smoothstep(float low, float high, float x) {
  float t = (x - low) / (high - low);
  t = t < 0.f ? 0.f : t > 1.f ? 1.f : t;
  return t * t * (3.f - 2.f * t);
}

#define MSL_FLOAT3(name, expression)                                                            \
  inline float name(float x, float y, float z) { return expression; }                           \
  inline half name(half x, half y, half z) { return (half)name((float)x, (float)y, (float)z); } \
  template <class T, int N>                                                                     \
  inline vec<T, N> name(vec<T, N> x, vec<T, N> y, vec<T, N> z) {                                \
    vec<T, N> result;                                                                           \
    for (int i = 0; i < N; ++i) result[i] = name((T)x[i], (T)y[i], (T)z[i]);                    \
    return result;                                                                              \
  }
MSL_FLOAT3(fma, __builtin_fmaf(x, y, z))
MSL_FLOAT3(fmax3, __builtin_fmaxf(x, __builtin_fmaxf(y, z)))
MSL_FLOAT3(fmin3, __builtin_fminf(x, __builtin_fminf(y, z)))
MSL_FLOAT3(fmedian3, fmax(fmin(x, y), fmin(fmax(x, y), z)))
MSL_FLOAT3(mix, x + (y - x) * z)
MSL_FLOAT3(smoothstep, msl_smoothstep(x, y, z))
#undef MSL_FLOAT3

inline float sincos(float x, thread float& cosine) {
  cosine = __builtin_cosf(x);
  return __builtin_sinf(x);
}
inline float ldexp(float x, int exponent) { return __builtin_ldexpf(x, exponent); }
inline half ldexp(half x, int exponent) { return (half)__builtin_ldexpf((float)x, exponent); }
inline float frexp(float x, thread int& exponent) { return __builtin_frexpf(x, &exponent); }
inline float modf(float x, thread float& whole) { return __builtin_modff(x, &whole); }

inline float abs(float x) { return __builtin_fabsf(x); }
inline half abs(half x) { return fabs(x); }
inline float min(float a, float b) { return __builtin_fminf(a, b); }
inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
inline half min(half a, half b) { return (half)__builtin_fminf((float)a, (float)b); }
inline half max(half a, half b) { return (half)__builtin_fmaxf((float)a, (float)b); }

#define MSL_TESTS(type)                                           \
  inline bool isnan(type x) { return __builtin_isnan((float)x); } \
  inline bool isinf(type x) { return __builtin_isinf((float)x); } \
  inline bool isfinite(type x) { return __builtin_isfinite((float)x); }
MSL_TESTS(float)
MSL_TESTS(half)
MSL_TESTS(bfloat)
#undef MSL_TESTS
inline bool signbit(float x) { return __builtin_signbit(x); }
}  // namespace metal

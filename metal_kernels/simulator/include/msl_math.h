// Functions of floating point numbers. As in Metal there are overloads for float, half and
// vectors of them, none for bfloat (MLX adds those) and none for double.
#pragma once

#include "msl_overloads.h"

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
  MSL_FLOAT_VECTORS(MSL_SAME1, name)
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
  MSL_FLOAT_VECTORS(MSL_EACH2, name)
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
  MSL_FLOAT_VECTORS(MSL_EACH3, name)
MSL_FLOAT3(fma, __builtin_fmaf(x, y, z))
MSL_FLOAT3(fmax3, __builtin_fmaxf(x, __builtin_fmaxf(y, z)))
MSL_FLOAT3(fmin3, __builtin_fminf(x, __builtin_fminf(y, z)))
MSL_FLOAT3(fmedian3, fmax(fmin(x, y), fmin(fmax(x, y), z)))
MSL_FLOAT3(mix, x + (y - x) * z)
MSL_FLOAT3(smoothstep, msl_smoothstep(x, y, z))
#undef MSL_FLOAT3

// A function with a second result, which it stores where the reference says.
#define MSL_EACH_RESULT(V, name, Second)           \
  inline V name(V x, thread Second& second) {      \
    V result;                                      \
    for (int i = 0; i < msl_shape<V>::size; ++i) { \
      typename msl_shape<Second>::element other;   \
      result[i] = name(x[i], other);               \
      second[i] = other;                           \
    }                                              \
    return result;                                 \
  }
#define MSL_FLOAT_RESULT(name, Second, expression) \
  inline float name(float x, thread Second& second) { return expression; }
MSL_FLOAT_RESULT(frexp, int, __builtin_frexpf(x, &second))
MSL_FLOAT_RESULT(modf, float, __builtin_modff(x, &second))
MSL_FLOAT_RESULT(sincos, float, (second = __builtin_cosf(x), __builtin_sinf(x)))
#undef MSL_FLOAT_RESULT
inline half frexp(half x, thread int& exponent) { return (half)frexp((float)x, exponent); }
#define MSL_HALF_RESULT(name)                     \
  inline half name(half x, thread half& second) { \
    float other;                                  \
    half result = (half)name((float)x, other);    \
    second = (half)other;                         \
    return result;                                \
  }
MSL_HALF_RESULT(modf)
MSL_HALF_RESULT(sincos)
#undef MSL_HALF_RESULT

inline float ldexp(float x, int exponent) { return __builtin_ldexpf(x, exponent); }
inline half ldexp(half x, int exponent) { return (half)__builtin_ldexpf((float)x, exponent); }
inline int ilogb(float x) { return __builtin_ilogbf(x); }
inline int ilogb(half x) { return __builtin_ilogbf((float)x); }

#define MSL_WITH_INTEGERS(type, n)                                    \
  MSL_EACH1(type##n, ilogb, int##n)                                   \
  MSL_EACH_RESULT(type##n, frexp, int##n)                             \
  MSL_EACH_RESULT(type##n, modf, type##n)                             \
  MSL_EACH_RESULT(type##n, sincos, type##n)                           \
  inline type##n ldexp(type##n x, int##n exponent) {                  \
    type##n result;                                                   \
    for (int i = 0; i < n; ++i) result[i] = ldexp(x[i], exponent[i]); \
    return result;                                                    \
  }
MSL_WITH_INTEGERS(float, 2)
MSL_WITH_INTEGERS(float, 3)
MSL_WITH_INTEGERS(float, 4)
MSL_WITH_INTEGERS(half, 2)
MSL_WITH_INTEGERS(half, 3)
MSL_WITH_INTEGERS(half, 4)
#undef MSL_WITH_INTEGERS
#undef MSL_EACH_RESULT

inline float abs(float x) { return __builtin_fabsf(x); }
inline half abs(half x) { return fabs(x); }
inline float min(float a, float b) { return __builtin_fminf(a, b); }
inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
inline half min(half a, half b) { return (half)__builtin_fminf((float)a, (float)b); }
inline half max(half a, half b) { return (half)__builtin_fmaxf((float)a, (float)b); }
MSL_FLOAT_VECTORS(MSL_SAME1, abs)
MSL_FLOAT_VECTORS(MSL_EACH2, min)
MSL_FLOAT_VECTORS(MSL_EACH2, max)
}  // namespace metal

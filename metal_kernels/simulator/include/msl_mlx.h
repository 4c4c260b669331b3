// Apple's internal names that the headers of MLX use: bf16_math.h builds its overloads for
// bfloat on them.
#pragma once

// The trailing int is the math mode.
#define MSL_INTERNAL1(name) \
  inline float __metal_##name(float x, int) { return metal::name(x); }
MSL_INTERNAL1(acos)
MSL_INTERNAL1(acosh)
MSL_INTERNAL1(asin)
MSL_INTERNAL1(asinh)
MSL_INTERNAL1(atan)
MSL_INTERNAL1(atanh)
MSL_INTERNAL1(ceil)
MSL_INTERNAL1(cos)
MSL_INTERNAL1(cosh)
MSL_INTERNAL1(cospi)
MSL_INTERNAL1(exp)
MSL_INTERNAL1(exp10)
MSL_INTERNAL1(exp2)
MSL_INTERNAL1(fabs)
MSL_INTERNAL1(floor)
MSL_INTERNAL1(fract)
MSL_INTERNAL1(log)
MSL_INTERNAL1(log10)
MSL_INTERNAL1(log2)
MSL_INTERNAL1(rint)
MSL_INTERNAL1(round)
MSL_INTERNAL1(rsqrt)
MSL_INTERNAL1(sin)
MSL_INTERNAL1(sinh)
MSL_INTERNAL1(sinpi)
MSL_INTERNAL1(sqrt)
MSL_INTERNAL1(tan)
MSL_INTERNAL1(tanh)
MSL_INTERNAL1(tanpi)
MSL_INTERNAL1(trunc)
#undef MSL_INTERNAL1

#define MSL_INTERNAL2(name) \
  inline float __metal_##name(float x, float y, int) { return metal::name(x, y); }
MSL_INTERNAL2(atan2)
MSL_INTERNAL2(divide)
MSL_INTERNAL2(fdim)
MSL_INTERNAL2(fmax)
MSL_INTERNAL2(fmin)
MSL_INTERNAL2(fmod)
MSL_INTERNAL2(pow)
MSL_INTERNAL2(powr)
#undef MSL_INTERNAL2

inline float __metal_fmax3(float x, float y, float z, int) { return metal::max3(x, y, z); }
inline float __metal_fmin3(float x, float y, float z, int) { return metal::min3(x, y, z); }
inline float __metal_fmedian3(float x, float y, float z, int) { return metal::median3(x, y, z); }
inline float __metal_fma(float x, float y, float z) { return metal::fma(x, y, z); }
inline float __metal_fma(float x, float y, float z, int) { return metal::fma(x, y, z); }
inline float __metal_nextafter(float x, float y) { return metal::nextafter(x, y); }
inline float __metal_frexp(float x, thread int* e) { return __builtin_frexpf(x, e); }
inline float __metal_frexp(float x, thread int* e, int) { return __builtin_frexpf(x, e); }
inline float __metal_ldexp(float x, int e, int) { return metal::ldexp(x, e); }

inline ushort __metal_get_simdgroup_size() { return 32; }
template <class T>
inline T __metal_get_simdgroup_size(T) {
  return 32;
}

#define MSL_INTERNAL_SIMD(name) \
  MSL_CONVERGENT inline float __metal_simd_##name(float x) { return metal::simd_##name(x); }
MSL_INTERNAL_SIMD(sum)
MSL_INTERNAL_SIMD(product)
MSL_INTERNAL_SIMD(min)
MSL_INTERNAL_SIMD(max)
MSL_INTERNAL_SIMD(prefix_inclusive_sum)
MSL_INTERNAL_SIMD(prefix_exclusive_sum)
MSL_INTERNAL_SIMD(prefix_inclusive_product)
MSL_INTERNAL_SIMD(prefix_exclusive_product)
#undef MSL_INTERNAL_SIMD
// named by MLX for completeness: there is no exclusive or of floats
inline float __metal_simd_xor(float x) { return x; }

#define MSL_INTERNAL_SHUFFLE(name)                                     \
  MSL_CONVERGENT inline float __metal_simd_##name(float x, ushort a) { \
    return metal::simd_##name(x, a);                                   \
  }
MSL_INTERNAL_SHUFFLE(broadcast)
MSL_INTERNAL_SHUFFLE(shuffle)
MSL_INTERNAL_SHUFFLE(shuffle_xor)
MSL_INTERNAL_SHUFFLE(shuffle_up)
MSL_INTERNAL_SHUFFLE(shuffle_down)
MSL_INTERNAL_SHUFFLE(shuffle_rotate_up)
MSL_INTERNAL_SHUFFLE(shuffle_rotate_down)
#undef MSL_INTERNAL_SHUFFLE
MSL_CONVERGENT inline float __metal_simd_shuffle_and_fill_up(float x, float fill, ushort a,
                                                             ushort modulo) {
  return modulo == 32 ? metal::simd_shuffle_and_fill_up(x, fill, a)
                      : metal::simd_shuffle_and_fill_up(x, fill, a, modulo);
}
MSL_CONVERGENT inline float __metal_simd_shuffle_and_fill_down(float x, float fill, ushort a,
                                                               ushort modulo) {
  return modulo == 32 ? metal::simd_shuffle_and_fill_down(x, fill, a)
                      : metal::simd_shuffle_and_fill_down(x, fill, a, modulo);
}

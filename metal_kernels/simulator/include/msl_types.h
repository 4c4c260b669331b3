// Scalar types, Metal's keywords and constants.
#pragma once

#include "msl_constants.h"
#include "msl_runtime.h"

#define __METAL__ 1
#ifndef __METAL_VERSION__
#define __METAL_VERSION__ 320
#endif
#define __HAVE_SIMDGROUP_REDUCTION__ 1
#define METAL_FUNC inline
// arguments that MLX's bf16_math.h passes to the functions of msl_mlx.h
#define __METAL_MAYBE_FAST_MATH__ 0
#define __METAL_FAST_MATH__ 1
#define __METAL_PRECISE_MATH__ 0

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef uchar uint8_t;
typedef ushort uint16_t;
typedef uint uint32_t;
typedef ulong uint64_t;
typedef ulong size_t;
typedef long ptrdiff_t;
typedef long intptr_t;
typedef ulong uintptr_t;
typedef _Float16 half;
typedef __bf16 bfloat;

constexpr half operator""h(long double x) { return (half)x; }
constexpr half operator""h(unsigned long long x) { return (half)x; }

template <class T, int N>
using msl_vector = T __attribute__((ext_vector_type(N)));

// Elements and element type of a vector; a scalar has one element.
template <class V>
struct msl_shape {
  static constexpr int size = 1;
  using element = V;
};
template <class T, int N>
struct msl_shape<T __attribute__((ext_vector_type(N)))> {
  static constexpr int size = N;
  using element = T;
};

#define MSL_VECTORS(type)              \
  typedef msl_vector<type, 2> type##2; \
  typedef msl_vector<type, 3> type##3; \
  typedef msl_vector<type, 4> type##4;
MSL_VECTORS(char)
MSL_VECTORS(uchar)
MSL_VECTORS(short)
MSL_VECTORS(ushort)
MSL_VECTORS(int)
MSL_VECTORS(uint)
MSL_VECTORS(long)
MSL_VECTORS(ulong)
MSL_VECTORS(half)
MSL_VECTORS(float)
MSL_VECTORS(bfloat)
#undef MSL_VECTORS
// clang's vectors of bool are bit masks. char4 is a vector of plain char, so that signed char
// tells these apart.
typedef msl_vector<int8_t, 2> bool2;
typedef msl_vector<int8_t, 3> bool3;
typedef msl_vector<int8_t, 4> bool4;

// The numbers are those that instrument.py watches.
#define kernel
#define thread
#define device __attribute__((address_space(1)))
#define constant const __attribute__((address_space(2)))  // constant implies const in Metal
#define threadgroup __attribute__((address_space(3)))

template <class T, class F>
constexpr inline T as_type(F x) {
  static_assert(sizeof(T) == sizeof(F), "as_type: sizes differ");
  return __builtin_bit_cast(T, x);
}

namespace metal {
using ::as_type;
template <class T, int N>
using vec = msl_vector<T, N>;
}  // namespace metal

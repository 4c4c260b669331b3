// The names that a header shares between Metal and C: simd_float4 is float4, and the same.
#pragma once
#include <metal_stdlib>

#define MSL_SIMD_VECTORS(type)      \
  typedef type##2 simd_##type##2;   \
  typedef type##3 simd_##type##3;   \
  typedef type##4 simd_##type##4;   \
  typedef type##2 vector_##type##2; \
  typedef type##3 vector_##type##3; \
  typedef type##4 vector_##type##4;
MSL_SIMD_VECTORS(char)
MSL_SIMD_VECTORS(uchar)
MSL_SIMD_VECTORS(short)
MSL_SIMD_VECTORS(ushort)
MSL_SIMD_VECTORS(int)
MSL_SIMD_VECTORS(uint)
MSL_SIMD_VECTORS(long)
MSL_SIMD_VECTORS(ulong)
MSL_SIMD_VECTORS(half)
MSL_SIMD_VECTORS(float)
#undef MSL_SIMD_VECTORS

#define MSL_SIMD_MATRICES(type, n)          \
  typedef type##n##x2 simd_##type##n##x2;   \
  typedef type##n##x3 simd_##type##n##x3;   \
  typedef type##n##x4 simd_##type##n##x4;   \
  typedef type##n##x2 matrix_##type##n##x2; \
  typedef type##n##x3 matrix_##type##n##x3; \
  typedef type##n##x4 matrix_##type##n##x4;
MSL_SIMD_MATRICES(half, 2)
MSL_SIMD_MATRICES(half, 3)
MSL_SIMD_MATRICES(half, 4)
MSL_SIMD_MATRICES(float, 2)
MSL_SIMD_MATRICES(float, 3)
MSL_SIMD_MATRICES(float, 4)
#undef MSL_SIMD_MATRICES

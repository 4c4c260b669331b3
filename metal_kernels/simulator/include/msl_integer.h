// Minimum, maximum and bits of integers; clamp of all numbers.
#pragma once

namespace metal {
#define MSL_ORDER(type)                                               \
  inline constexpr type min(type a, type b) { return b < a ? b : a; } \
  inline constexpr type max(type a, type b) { return a < b ? b : a; }
MSL_ORDER(char)
MSL_ORDER(int8_t)
MSL_ORDER(uchar)
MSL_ORDER(short)
MSL_ORDER(ushort)
MSL_ORDER(int)
MSL_ORDER(uint)
MSL_ORDER(long)
MSL_ORDER(ulong)
#undef MSL_ORDER

#define MSL_ORDER3(type)                                                            \
  inline type clamp(type x, type low, type high) { return min(max(x, low), high); } \
  inline type max3(type a, type b, type c) { return max(a, max(b, c)); }            \
  inline type min3(type a, type b, type c) { return min(a, min(b, c)); }            \
  inline type median3(type a, type b, type c) { return max(min(a, b), min(max(a, b), c)); }
MSL_ORDER3(char)
MSL_ORDER3(int8_t)
MSL_ORDER3(uchar)
MSL_ORDER3(short)
MSL_ORDER3(ushort)
MSL_ORDER3(int)
MSL_ORDER3(uint)
MSL_ORDER3(long)
MSL_ORDER3(ulong)
MSL_ORDER3(float)
MSL_ORDER3(half)
#undef MSL_ORDER3

template <class T, int N>
inline vec<T, N> min(vec<T, N> a, vec<T, N> b) {
  vec<T, N> result;
  for (int i = 0; i < N; ++i) result[i] = min((T)a[i], (T)b[i]);
  return result;
}
template <class T, int N>
inline vec<T, N> max(vec<T, N> a, vec<T, N> b) {
  vec<T, N> result;
  for (int i = 0; i < N; ++i) result[i] = max((T)a[i], (T)b[i]);
  return result;
}
template <class T, int N>
inline vec<T, N> clamp(vec<T, N> x, vec<T, N> low, vec<T, N> high) {
  return min(max(x, low), high);
}

#define MSL_ABS(type) \
  inline type abs(type x) { return x < 0 ? -x : x; }
MSL_ABS(int8_t)
MSL_ABS(short)
MSL_ABS(int)
MSL_ABS(long)
#undef MSL_ABS
#define MSL_ABS(type) \
  inline type abs(type x) { return x; }
MSL_ABS(uchar)
MSL_ABS(ushort)
MSL_ABS(uint)
MSL_ABS(ulong)
#undef MSL_ABS

inline uchar popcount(uchar x) { return __builtin_popcount(x); }
inline ushort popcount(ushort x) { return __builtin_popcount(x); }
inline int popcount(int x) { return __builtin_popcount(x); }
inline uint popcount(uint x) { return __builtin_popcount(x); }
inline ulong popcount(ulong x) { return __builtin_popcountl(x); }
inline int clz(int x) { return x ? __builtin_clz(x) : 32; }
inline uint clz(uint x) { return x ? __builtin_clz(x) : 32; }
inline int ctz(int x) { return x ? __builtin_ctz(x) : 32; }
inline uint ctz(uint x) { return x ? __builtin_ctz(x) : 32; }
inline uint mulhi(uint a, uint b) { return ((ulong)a * b) >> 32; }
inline int mulhi(int a, int b) { return ((long)a * b) >> 32; }

inline uint rotate(uint x, uint count) {
  count &= 31;
  return count ? (x << count) | (x >> (32 - count)) : x;
}
inline uint reverse_bits(uint x) {
  uint result = 0;
  for (int i = 0; i < 32; ++i) result |= ((x >> i) & 1u) << (31 - i);
  return result;
}
inline uint extract_bits(uint x, uint offset, uint count) {
  return count >= 32 ? x >> offset : (x >> offset) & ((1u << count) - 1);
}
}  // namespace metal

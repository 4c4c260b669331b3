// Functions of integers; clamp and the middle of three, of all numbers.
#pragma once

#include "msl_overloads.h"

namespace metal {
#define MSL_ORDER(type, _)                                            \
  inline constexpr type min(type a, type b) { return b < a ? b : a; } \
  inline constexpr type max(type a, type b) { return a < b ? b : a; }
MSL_INTEGERS(MSL_ORDER, )
#undef MSL_ORDER
MSL_INTEGER_VECTORS(MSL_EACH2, min)
MSL_INTEGER_VECTORS(MSL_EACH2, max)

#define MSL_ORDER3(type, _)                                                         \
  inline type clamp(type x, type low, type high) { return min(max(x, low), high); } \
  inline type max3(type a, type b, type c) { return max(a, max(b, c)); }            \
  inline type min3(type a, type b, type c) { return min(a, min(b, c)); }            \
  inline type median3(type a, type b, type c) { return max(min(a, b), min(max(a, b), c)); }
MSL_INTEGERS(MSL_ORDER3, )
MSL_INTEGER_VECTORS(MSL_ORDER3, )
MSL_ORDER3(float, )
MSL_ORDER3(half, )
MSL_FLOAT_VECTORS(MSL_ORDER3, )
#undef MSL_ORDER3

#define MSL_ABS(type) \
  inline type abs(type x) { return x < 0 ? -x : x; }
MSL_ABS(char)
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

// Bits are those of the argument's own type, where C++ would promote a small one to int.
template <class T>
using msl_if_integer = enable_if_t<is_integral_v<T> && !is_same_v<T, bool>, T>;
template <class T>
constexpr int msl_bits = sizeof(T) * 8;

template <class T>
inline msl_if_integer<T> popcount(T x) {
  return (T)__builtin_popcountl((ulong)(make_unsigned_t<T>)x);
}
template <class T>
inline msl_if_integer<T> clz(T x) {
  ulong bits = (make_unsigned_t<T>)x;
  return (T)(bits ? __builtin_clzl(bits) - (64 - msl_bits<T>) : msl_bits<T>);
}
template <class T>
inline msl_if_integer<T> ctz(T x) {
  ulong bits = (make_unsigned_t<T>)x;
  return (T)(bits ? __builtin_ctzl(bits) : msl_bits<T>);
}
template <class T>
inline msl_if_integer<T> reverse_bits(T x) {
  ulong bits = (make_unsigned_t<T>)x, result = 0;
  for (int i = 0; i < msl_bits<T>; ++i) result |= ((bits >> i) & 1) << (msl_bits<T> - 1 - i);
  return (T)result;
}
template <class T>
inline msl_if_integer<T> rotate(T x, T count) {
  ulong bits = (make_unsigned_t<T>)x;
  ulong left = (ulong)count & (msl_bits<T> - 1);
  return left ? (T)(bits << left | bits >> (msl_bits<T> - left)) : x;
}
template <class T>
inline msl_if_integer<T> mulhi(T a, T b) {
  using wide = conditional_t<is_signed_v<T>, __int128, unsigned __int128>;
  return (T)(((wide)a * (wide)b) >> msl_bits<T>);
}
// Of a signed number, the highest of the bits taken is its sign.
template <class T>
inline msl_if_integer<T> extract_bits(T x, uint offset, uint count) {
  if (count == 0) return 0;
  uint above = msl_bits<T> - offset - count;
  T top = (T)((ulong)x << above);
  return (T)(top >> (msl_bits<T> - count));
}
template <class T>
inline msl_if_integer<T> insert_bits(T base, T inserted, uint offset, uint count) {
  ulong mask = (count >= 64 ? ~0ul : (1ul << count) - 1) << offset;
  return (T)(((ulong)base & ~mask) | (((ulong)inserted << offset) & mask));
}
template <class T>
inline msl_if_integer<T> absdiff(T a, T b) {
  return a < b ? (T)(b - a) : (T)(a - b);
}

// Sums and products that stay at the type's limits instead of wrapping around.
using msl_wide = __int128;
template <class T>
inline T msl_saturated(msl_wide x) {
  if (x < (msl_wide)numeric_limits<T>::min()) return numeric_limits<T>::min();
  if (x > (msl_wide)numeric_limits<T>::max()) return numeric_limits<T>::max();
  return (T)x;
}
template <class T>
inline msl_if_integer<T> addsat(T a, T b) {
  return msl_saturated<T>((msl_wide)a + (msl_wide)b);
}
template <class T>
inline msl_if_integer<T> subsat(T a, T b) {
  return msl_saturated<T>((msl_wide)a - (msl_wide)b);
}
template <class T>
inline msl_if_integer<T> madsat(T a, T b, T c) {
  // a product of two ulong does not fit into a signed 128-bit integer
  msl_wide product;
  if (__builtin_mul_overflow((msl_wide)a, (msl_wide)b, &product)) return numeric_limits<T>::max();
  return __builtin_add_overflow(product, (msl_wide)c, &product) ? numeric_limits<T>::max()
                                                                : msl_saturated<T>(product);
}
template <class T>
inline msl_if_integer<T> madhi(T a, T b, T c) {
  // wraps around
  return (T)((make_unsigned_t<T>)mulhi(a, b) + (make_unsigned_t<T>)c);
}
// Half of a sum, rounded down and up, without overflow in between.
template <class T>
inline msl_if_integer<T> hadd(T a, T b) {
  return (T)(((msl_wide)a + (msl_wide)b) >> 1);
}
template <class T>
inline msl_if_integer<T> rhadd(T a, T b) {
  return (T)(((msl_wide)a + (msl_wide)b + 1) >> 1);
}

// Of the low 24 bits.
inline int msl_low24(int x) { return (int)((uint)x << 8) >> 8; }
inline uint msl_low24(uint x) { return x & 0xffffff; }
#define MSL_24(type)                                                                            \
  inline type mul24(type a, type b) { return (type)((long)msl_low24(a) * (long)msl_low24(b)); } \
  inline type mad24(type a, type b, type c) { return (type)((uint)mul24(a, b) + (uint)c); }
MSL_24(int)
MSL_24(uint)
#undef MSL_24
MSL_SIZES(MSL_EACH2, int, mul24)
MSL_SIZES(MSL_EACH2, uint, mul24)
MSL_SIZES(MSL_EACH3, int, mad24)
MSL_SIZES(MSL_EACH3, uint, mad24)

MSL_INTEGER_VECTORS(MSL_SAME1, abs)
MSL_INTEGER_VECTORS(MSL_SAME1, popcount)
MSL_INTEGER_VECTORS(MSL_SAME1, clz)
MSL_INTEGER_VECTORS(MSL_SAME1, ctz)
MSL_INTEGER_VECTORS(MSL_SAME1, reverse_bits)
MSL_INTEGER_VECTORS(MSL_EACH2, rotate)
MSL_INTEGER_VECTORS(MSL_EACH2, mulhi)
MSL_INTEGER_VECTORS(MSL_EACH2, absdiff)
MSL_INTEGER_VECTORS(MSL_EACH2, addsat)
MSL_INTEGER_VECTORS(MSL_EACH2, subsat)
MSL_INTEGER_VECTORS(MSL_EACH2, hadd)
MSL_INTEGER_VECTORS(MSL_EACH2, rhadd)
MSL_INTEGER_VECTORS(MSL_EACH3, madsat)
MSL_INTEGER_VECTORS(MSL_EACH3, madhi)

#define MSL_BIT_FIELDS(V, _)                                                                    \
  inline V extract_bits(V x, uint offset, uint count) {                                         \
    V result;                                                                                   \
    for (int i = 0; i < msl_shape<V>::size; ++i) result[i] = extract_bits(x[i], offset, count); \
    return result;                                                                              \
  }                                                                                             \
  inline V insert_bits(V base, V inserted, uint offset, uint count) {                           \
    V result;                                                                                   \
    for (int i = 0; i < msl_shape<V>::size; ++i) {                                              \
      result[i] = insert_bits(base[i], inserted[i], offset, count);                             \
    }                                                                                           \
    return result;                                                                              \
  }
MSL_INTEGER_VECTORS(MSL_BIT_FIELDS, )
#undef MSL_BIT_FIELDS
}  // namespace metal

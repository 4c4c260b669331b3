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

#define MSL_EACH1(name)                                    \
  template <class T, int N>                                \
  inline vec<T, N> name(vec<T, N> x) {                     \
    vec<T, N> result;                                      \
    for (int i = 0; i < N; ++i) result[i] = name((T)x[i]); \
    return result;                                         \
  }
MSL_EACH1(abs)
MSL_EACH1(popcount)
MSL_EACH1(clz)
MSL_EACH1(ctz)
MSL_EACH1(reverse_bits)
#undef MSL_EACH1

#define MSL_EACH2(name)                                             \
  template <class T, int N>                                         \
  inline vec<T, N> name(vec<T, N> x, vec<T, N> y) {                 \
    vec<T, N> result;                                               \
    for (int i = 0; i < N; ++i) result[i] = name((T)x[i], (T)y[i]); \
    return result;                                                  \
  }
MSL_EACH2(rotate)
MSL_EACH2(mulhi)
MSL_EACH2(absdiff)
#undef MSL_EACH2
}  // namespace metal

// What the numbers of a type are.
#pragma once

namespace metal {
template <class T>
struct numeric_limits {
  static constexpr bool is_specialized = false;
};

#define MSL_LIMITS(type, least, most)                                                            \
  template <>                                                                                    \
  struct numeric_limits<type> {                                                                  \
    static constexpr type max() { return most; }                                                 \
    static constexpr type min() { return least; }                                                \
    static constexpr type lowest() { return least; }                                             \
    static constexpr bool is_specialized = true;                                                 \
    static constexpr bool is_integer = true;                                                     \
    static constexpr bool is_exact = true;                                                       \
    static constexpr bool has_infinity = false;                                                  \
    static constexpr bool has_quiet_NaN = false;                                                 \
    static constexpr int radix = 2;                                                              \
    static constexpr bool is_signed = (least) != 0;                                              \
    static constexpr int digits = is_same_v<type, bool> ? 1 : sizeof(type) * 8 - ((least) != 0); \
    static constexpr int digits10 = digits * 3 / 10;                                             \
  };
MSL_LIMITS(bool, false, true)
MSL_LIMITS(char, -128, 127)
MSL_LIMITS(int8_t, -128, 127)
MSL_LIMITS(uchar, 0, 255)
MSL_LIMITS(short, -32768, 32767)
MSL_LIMITS(ushort, 0, 65535)
MSL_LIMITS(int, -2147483647 - 1, 2147483647)
MSL_LIMITS(uint, 0u, 4294967295u)
MSL_LIMITS(long, -9223372036854775807L - 1, 9223372036854775807L)
MSL_LIMITS(ulong, 0ul, 18446744073709551615ul)
#undef MSL_LIMITS

#define MSL_LIMITS(type, most, least, step, bits, tens)                    \
  template <>                                                              \
  struct numeric_limits<type> {                                            \
    static constexpr type max() { return (type)(most); }                   \
    static constexpr type min() { return (type)(least); }                  \
    static constexpr type lowest() { return (type)(-(most)); }             \
    static constexpr type infinity() { return (type)__builtin_inff(); }    \
    static constexpr type quiet_NaN() { return (type)__builtin_nanf(""); } \
    static constexpr type epsilon() { return (type)(step); }               \
    static constexpr type round_error() { return (type)0.5f; }             \
    static constexpr bool is_specialized = true;                           \
    static constexpr bool is_integer = false;                              \
    static constexpr bool is_exact = false;                                \
    static constexpr bool has_infinity = true;                             \
    static constexpr bool has_quiet_NaN = true;                            \
    static constexpr bool is_signed = true;                                \
    static constexpr int radix = 2;                                        \
    static constexpr int digits = bits;                                    \
    static constexpr int digits10 = tens;                                  \
  };
MSL_LIMITS(float, FLT_MAX, FLT_MIN, FLT_EPSILON, 24, 6)
MSL_LIMITS(half, HALF_MAX, HALF_MIN, HALF_EPSILON, 11, 3)
MSL_LIMITS(bfloat, BFLT_MAX, BFLT_MIN, BFLT_EPSILON, 8, 2)
#undef MSL_LIMITS
}  // namespace metal

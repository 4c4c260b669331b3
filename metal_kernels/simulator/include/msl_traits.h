// Type traits and numeric limits.
#pragma once

namespace metal {
template <class T, T V>
struct integral_constant {
  static constexpr T value = V;
  using type = integral_constant;
  constexpr operator T() const { return V; }
};
template <bool B>
using bool_constant = integral_constant<bool, B>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <class A, class B>
struct is_same : false_type {};
template <class A>
struct is_same<A, A> : true_type {};
template <class A, class B>
constexpr bool is_same_v = is_same<A, B>::value;

template <bool, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  using type = T;
};
template <bool B, class T = void>
using enable_if_t = typename enable_if<B, T>::type;

template <bool, class T, class F>
struct conditional {
  using type = T;
};
template <class T, class F>
struct conditional<false, T, F> {
  using type = F;
};
template <bool B, class T, class F>
using conditional_t = typename conditional<B, T, F>::type;

template <class... B>
struct _disjunction : bool_constant<(B::value || ...)> {};

template <class T>
struct remove_reference {
  using type = T;
};
template <class T>
struct remove_reference<T&> {
  using type = T;
};
template <class T>
struct remove_cv {
  using type = T;
};
template <class T>
struct remove_cv<const T> {
  using type = T;
};
template <class T>
struct remove_cv<volatile T> {
  using type = T;
};
template <class T>
struct remove_cv<const volatile T> {
  using type = T;
};
template <class T>
using remove_cv_t = typename remove_cv<T>::type;

template <class T, class... Types>
constexpr bool msl_is_one_of = (is_same_v<T, Types> || ...);

template <class T>
constexpr bool is_floating_point_v = msl_is_one_of<T, float, half, bfloat>;
template <class T>
constexpr bool is_unsigned_v = msl_is_one_of<T, bool, uchar, ushort, uint, ulong>;
template <class T>
constexpr bool is_integral_v = is_unsigned_v<T> || msl_is_one_of<T, char, int8_t, short, int, long>;
template <class T>
constexpr bool is_signed_v = (is_integral_v<T> || is_floating_point_v<T>) && !is_unsigned_v<T>;
template <class T>
struct is_floating_point : bool_constant<is_floating_point_v<T>> {};
template <class T>
struct is_unsigned : bool_constant<is_unsigned_v<T>> {};
template <class T>
struct is_integral : bool_constant<is_integral_v<T>> {};
template <class T>
struct is_signed : bool_constant<is_signed_v<T>> {};

template <class T>
T&& msl_declval();
template <class T>
void msl_sink(T);
template <class From, class To, class = void>
struct is_convertible : false_type {};
template <class From, class To>
struct is_convertible<From, To, decltype(msl_sink<To>(msl_declval<From>()))> : true_type {};
template <class From, class To>
constexpr bool is_convertible_v = is_convertible<From, To>::value;

template <class T>
struct make_unsigned {
  using type = T;
};
template <>
struct make_unsigned<char> {
  using type = uchar;
};
template <>
struct make_unsigned<int8_t> {
  using type = uchar;
};
template <>
struct make_unsigned<short> {
  using type = ushort;
};
template <>
struct make_unsigned<int> {
  using type = uint;
};
template <>
struct make_unsigned<long> {
  using type = ulong;
};
template <class T>
using make_unsigned_t = typename make_unsigned<T>::type;

template <class T>
struct numeric_limits;

#define MSL_LIMITS(type, least, most)                                \
  template <>                                                        \
  struct numeric_limits<type> {                                      \
    static constexpr type max() { return most; }                     \
    static constexpr type min() { return least; }                    \
    static constexpr type lowest() { return least; }                 \
    static constexpr bool is_signed = (least) != 0;                  \
    static constexpr int digits = sizeof(type) * 8 - ((least) != 0); \
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

#define MSL_LIMITS(type, most, least, step)                                \
  template <>                                                              \
  struct numeric_limits<type> {                                            \
    static constexpr type max() { return (type)(most); }                   \
    static constexpr type min() { return (type)(least); }                  \
    static constexpr type lowest() { return (type)(-(most)); }             \
    static constexpr type infinity() { return (type)__builtin_inff(); }    \
    static constexpr type quiet_NaN() { return (type)__builtin_nanf(""); } \
    static constexpr type epsilon() { return (type)(step); }               \
    static constexpr bool is_signed = true;                                \
  };
MSL_LIMITS(float, FLT_MAX, FLT_MIN, FLT_EPSILON)
MSL_LIMITS(half, 65504.f, 6.103515625e-05f, 0.0009765625f)
MSL_LIMITS(bfloat, 3.3895313892515355e38f, FLT_MIN, 0.0078125f)
#undef MSL_LIMITS
}  // namespace metal

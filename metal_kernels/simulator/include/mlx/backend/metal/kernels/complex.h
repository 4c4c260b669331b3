// In place of MLX's complex.h, whose constructors and conversions have an address space each,
// which clang does not take.
#pragma once
#include <metal_stdlib>

#include "mlx/backend/metal/kernels/bf16.h"

template <typename T>
struct complex_t;

template <typename T>
constexpr bool is_complex_v = false;
template <typename T>
constexpr bool is_complex_v<complex_t<T>> = true;

template <typename From, typename To>
constexpr bool is_lane_convertible_v =
    is_convertible_v<From, To> || (is_same_v<To, bfloat> && is_convertible_v<From, float>) ||
    (is_same_v<From, bfloat> && is_convertible_v<float, To>);

template <typename T>
struct complex_t {
  using value_type = T;
  template <typename U>
  using if_lane = enable_if_t<!is_complex_v<U> && is_lane_convertible_v<U, T>>;
  template <typename U>
  using if_to_lane = enable_if_t<!is_complex_v<U> && is_lane_convertible_v<T, U>>;

  T real;
  T imag;

  constexpr complex_t() : real(0), imag(0) {}
  constexpr complex_t(T real_part, T imaginary_part) : real(real_part), imag(imaginary_part) {}
  constexpr complex_t(vec<T, 2> v) : real(v.x), imag(v.y) {}
  template <typename U, typename = if_lane<U>>
  constexpr complex_t(U x) : real(static_cast<T>(x)), imag(0) {}
  template <typename U, typename = enable_if_t<!is_same_v<U, T>>>
  constexpr complex_t(complex_t<U> x)
      : real(metal::msl_cast<T>(x.real)), imag(metal::msl_cast<T>(x.imag)) {}

  // copies from every memory
  constexpr complex_t(const thread complex_t&) = default;
  complex_t(const device complex_t& x) : real(x.real), imag(x.imag) {}
  complex_t(const threadgroup complex_t& x) : real(x.real), imag(x.imag) {}
  complex_t(constant complex_t& x) : real(x.real), imag(x.imag) {}
  complex_t& operator=(const thread complex_t&) = default;
  static auto msl_members() {
    return [](auto& to, auto& from) { to.real = from.real, to.imag = from.imag; };
  }

  constexpr operator vec<T, 2>() const { return vec<T, 2>{real, imag}; }
  template <typename U, typename = if_to_lane<U>>
  constexpr operator U() const {
    return static_cast<U>(real);
  }
};

template <typename T>
constexpr complex_t<T> operator-(complex_t<T> x) {
  return {-x.real, -x.imag};
}

// in the order of the real parts first, as MLX sorts them
template <typename T>
constexpr bool operator==(complex_t<T> a, complex_t<T> b) {
  return a.real == b.real && a.imag == b.imag;
}
template <typename T>
constexpr bool operator!=(complex_t<T> a, complex_t<T> b) {
  return !(a == b);
}
template <typename T>
constexpr bool operator>(complex_t<T> a, complex_t<T> b) {
  return a.real > b.real || (a.real == b.real && a.imag > b.imag);
}
template <typename T>
constexpr bool operator>=(complex_t<T> a, complex_t<T> b) {
  return a > b || a == b;
}
template <typename T>
constexpr bool operator<(complex_t<T> a, complex_t<T> b) {
  return b > a;
}
template <typename T>
constexpr bool operator<=(complex_t<T> a, complex_t<T> b) {
  return b >= a;
}

template <typename T>
constexpr complex_t<T> operator+(complex_t<T> a, complex_t<T> b) {
  return {a.real + b.real, a.imag + b.imag};
}
template <typename T>
constexpr complex_t<T> operator-(complex_t<T> a, complex_t<T> b) {
  return {a.real - b.real, a.imag - b.imag};
}
template <typename T>
constexpr complex_t<T> operator*(complex_t<T> a, complex_t<T> b) {
  return {a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real};
}
// Smith's division, in float, which does not overflow where the quotient does not.
template <typename T>
complex_t<T> operator/(complex_t<T> a, complex_t<T> b) {
  float ar = a.real, ai = a.imag, br = b.real, bi = b.imag;
  if (metal::abs(br) >= metal::abs(bi)) {
    float ratio = bi / br, divisor = br + bi * ratio;
    return {static_cast<T>((ar + ai * ratio) / divisor),
            static_cast<T>((ai - ar * ratio) / divisor)};
  }
  float ratio = br / bi, divisor = br * ratio + bi;
  return {static_cast<T>((ar * ratio + ai) / divisor), static_cast<T>((ai * ratio - ar) / divisor)};
}
template <typename T>
complex_t<T> operator%(complex_t<T> a, complex_t<T> b) {
  T real = a.real - b.real * static_cast<int64_t>(a.real / b.real);
  T imag = a.imag - b.imag * static_cast<int64_t>(a.imag / b.imag);
  if (real != 0 && (real < 0) != (b.real < 0)) real += b.real;
  if (imag != 0 && (imag < 0) != (b.imag < 0)) imag += b.imag;
  return {real, imag};
}

#define MSL_COMPLEX_OPERATOR(op)                                                                \
  template <typename U, typename T, typename = enable_if_t<!is_complex_v<U> && is_scalar_v<U>>> \
  constexpr complex_t<T> operator op(U a, complex_t<T> b) {                                     \
    return complex_t<T>(a) op b;                                                                \
  }                                                                                             \
  template <typename U, typename T, typename = enable_if_t<!is_complex_v<U> && is_scalar_v<U>>> \
  constexpr complex_t<T> operator op(complex_t<T> a, U b) {                                     \
    return a op complex_t<T>(b);                                                                \
  }                                                                                             \
  template <typename C, typename T = typename metal::msl_value_t<C>::value_type,                \
            typename = enable_if_t<is_same_v<metal::msl_value_t<C>, complex_t<T>>>>             \
  C& operator op##=(C& a, metal::msl_given<complex_t<T>> b) {                                   \
    metal::msl_assign(a, complex_t<T>(a) op b);                                                 \
    return a;                                                                                   \
  }
MSL_COMPLEX_OPERATOR(+)
MSL_COMPLEX_OPERATOR(-)
MSL_COMPLEX_OPERATOR(*)
MSL_COMPLEX_OPERATOR(/)
#undef MSL_COMPLEX_OPERATOR

typedef complex_t<float> complex64_t;

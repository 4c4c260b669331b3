// In place of MLX's complex.h, whose types clang does not take in address spaces: enough
// for the headers that include it. Kernels on complex numbers are out of scope.
#pragma once
#include <metal_stdlib>

template <typename T>
struct complex_t {
  using value_type = T;
  T real;
  T imag;
  constexpr complex_t(T real_part, T imaginary_part) : real(real_part), imag(imaginary_part) {}
  constexpr complex_t(T real_part = 0) : real(real_part), imag(0) {}
  constexpr complex_t operator+(complex_t other) const {
    return {real + other.real, imag + other.imag};
  }
};
typedef complex_t<float> complex64_t;
template <typename T>
constexpr bool is_complex_v = false;
template <typename T>
constexpr bool is_complex_v<complex_t<T>> = true;

// uniform<T>: a value that is the same in all threads, which the compiler of Metal is told so.
#pragma once

namespace metal {
template <class T>
using uniform = T;
template <class T>
constexpr inline T make_uniform(T value) {
  return value;
}
}  // namespace metal

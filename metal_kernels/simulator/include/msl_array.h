// array<T, N>.
#pragma once

namespace metal {
template <class T, size_t N>
struct array {
  T elements[N];  // public, so that an array is initialised like one of C

  constexpr thread T& operator[](size_t i) { return elements[i]; }
  constexpr const thread T& operator[](size_t i) const { return elements[i]; }
  constexpr size_t size() const { return N; }
  constexpr bool empty() const { return N == 0; }
  constexpr thread T* data() { return elements; }
  constexpr const thread T* data() const { return elements; }
  constexpr thread T& front() { return elements[0]; }
  constexpr thread T& back() { return elements[N - 1]; }
  constexpr thread T* begin() { return elements; }
  constexpr const thread T* begin() const { return elements; }
  constexpr thread T* end() { return elements + N; }
  constexpr const thread T* end() const { return elements + N; }
  void fill(T value) {
    for (size_t i = 0; i < N; ++i) elements[i] = value;
  }

  // for msl_memory.h
  static auto msl_members() {
    return [](auto& to, auto& from) { msl_copy(to.elements, from.elements); };
  }
  template <class Self>
  static constexpr auto& msl_element(Self& self, size_t i) {
    return self.elements[i];
  }
};
}  // namespace metal

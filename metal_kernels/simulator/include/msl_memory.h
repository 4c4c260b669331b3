// Structures in Metal's memory. Metal copies a structure from and to every address space; the
// constructors and assignments of clang know thread memory only. translate.py writes the
// copies that it finds as msl_value and msl_assign, and gives every structure of the text a
// function that copies its members, so that no copy accesses the padding between them.
#pragma once

namespace metal {
// The function object `T::msl_members()` takes two structures and copies the second's members.
template <class T, class = void>
constexpr bool msl_has_members = false;
template <class T>
constexpr bool msl_has_members<T, msl_void_t<decltype(T::msl_members())>> = true;

template <class To, class From>
constexpr inline enable_if_t<msl_has_members<msl_value_t<To>>> msl_copy(To& to, From& from) {
  msl_value_t<To>::msl_members()(to, from);
}
template <class To, class From>
constexpr inline enable_if_t<!msl_has_members<msl_value_t<To>>> msl_copy(To& to, From& from) {
  to = from;
}
template <class To, class From, ulong N>
constexpr inline void msl_copy(To (&to)[N], From (&from)[N]) {
  for (ulong i = 0; i < N; ++i) msl_copy(to[i], from[i]);
}

// The pointer as one to another type, in the same address space.
#define MSL_POINTER_TO(space)                           \
  template <class T, class From>                        \
  inline space T* msl_pointer_to(space From* pointer) { \
    return (space T*)pointer;                           \
  }
MSL_POINTER_TO(thread)
MSL_POINTER_TO(device)
MSL_POINTER_TO(threadgroup)
MSL_POINTER_TO(constant)
#undef MSL_POINTER_TO

// A union, or a structure with one inside: nobody knows which members hold something.
template <class To, class From>
inline void msl_copy_bytes(To& to, From& from) {
  constexpr ulong alignment = alignof(msl_value_t<To>);
  using Word =
      conditional_t<alignment % 4 == 0, uint, conditional_t<alignment % 2 == 0, ushort, uchar>>;
  typedef Word Aliasing __attribute__((may_alias));
  auto* target = msl_pointer_to<Aliasing>(&to);
  auto* source = msl_pointer_to<const Aliasing>(&from);
  for (ulong i = 0; i < sizeof(To) / sizeof(Word); ++i) target[i] = source[i];
}

// Room for a structure that is not constructed.
template <class T>
union msl_room {
  T value;
  msl_room() {}
};

// What an expression in any address space holds, in thread memory.
template <class T>
constexpr inline enable_if_t<!msl_has_members<T>, T> msl_value(T value) {
  return value;
}
template <class T>
constexpr inline enable_if_t<msl_has_members<remove_cv_t<remove_reference_t<T>>>, T&&> msl_value(
    T&& value) {
  return static_cast<T&&>(value);
}
#define MSL_VALUE(qualified)                                                \
  template <class T>                                                        \
  inline enable_if_t<msl_has_members<T>, T> msl_value(qualified T& value) { \
    msl_room<T> copy;                                                       \
    msl_copy(copy.value, value);                                            \
    return copy.value;                                                      \
  }
MSL_VALUE(device)
MSL_VALUE(const device)
MSL_VALUE(threadgroup)
MSL_VALUE(const threadgroup)
MSL_VALUE(constant)
#undef MSL_VALUE

// `to = from;` where either may be a structure in any address space.
template <class To>
constexpr inline void msl_assign(To& to, const msl_value_t<To>& from) {
  msl_copy(to, from);
}

// x[i] of a packed vector or a matrix in any address space: an operator of a class knows thread
// memory only.
template <class T>
constexpr inline auto& msl_at(T& x, int i) {
  return msl_value_t<T>::msl_element(x, i);
}
}  // namespace metal

// Type traits.
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
struct disjunction : bool_constant<(B::value || ...)> {};
template <class... B>
struct conjunction : bool_constant<(B::value && ...)> {};
template <class B>
struct negation : bool_constant<!B::value> {};
// what MLX calls it
template <class... B>
using _disjunction = disjunction<B...>;
template <class...>
struct msl_make_void {
  using type = void;
};
template <class... T>
using msl_void_t = typename msl_make_void<T...>::type;

// A trait that changes a type, with its alias: the type itself, but for the patterns below.
#define MSL_CHANGE(name) \
  template <class T>     \
  struct name {          \
    using type = T;      \
  };                     \
  template <class T>     \
  using name##_t = typename name<T>::type;
#define MSL_CHANGES(name, from, to) \
  template <class T>                \
  struct name<from> {               \
    using type = to;                \
  };
MSL_CHANGE(remove_reference)
MSL_CHANGES(remove_reference, T&, T)
MSL_CHANGES(remove_reference, T&&, T)
MSL_CHANGE(remove_const)
MSL_CHANGES(remove_const, const T, T)
MSL_CHANGE(remove_volatile)
MSL_CHANGES(remove_volatile, volatile T, T)
template <class T>
struct remove_cv {
  using type = remove_volatile_t<remove_const_t<T>>;
};
template <class T>
using remove_cv_t = typename remove_cv<T>::type;
template <class T>
using add_const_t = const T;
template <class T>
using add_volatile_t = volatile T;
MSL_CHANGE(remove_pointer)
MSL_CHANGES(remove_pointer, T*, T)
MSL_CHANGES(remove_pointer, T* const, T)
MSL_CHANGE(remove_extent)
MSL_CHANGES(remove_extent, T[], T)
template <class T, ulong N>
struct remove_extent<T[N]> {
  using type = T;
};
#define MSL_REMOVES_SPACE(space)            \
  MSL_CHANGES(remove_addrspace, space T, T) \
  MSL_CHANGES(remove_addrspace, const space T, const T)
MSL_CHANGE(remove_addrspace)
MSL_REMOVES_SPACE(device)
MSL_REMOVES_SPACE(threadgroup)
MSL_REMOVES_SPACE(__attribute__((address_space(2))))
#undef MSL_REMOVES_SPACE
// A parameter type from which nothing is deduced.
template <class T>
using msl_given = conditional_t<true, T, T>;
// The type without reference, address space, const and volatile.
template <class T>
using msl_value_t = remove_cv_t<remove_addrspace_t<remove_cv_t<remove_reference_t<T>>>>;

template <class T>
struct is_void : is_same<void, remove_cv_t<T>> {};
template <class T>
struct is_const : bool_constant<!is_same_v<T, remove_const_t<T>>> {};
template <class T>
struct is_volatile : bool_constant<!is_same_v<T, remove_volatile_t<T>>> {};
template <class T>
struct is_pointer : bool_constant<!is_same_v<T, remove_pointer_t<T>>> {};
template <class T>
struct is_array : bool_constant<!is_same_v<T, remove_extent_t<T>>> {};
template <class T>
struct is_reference : bool_constant<!is_same_v<T, remove_reference_t<T>>> {};
template <class T>
struct is_lvalue_reference : false_type {};
template <class T>
struct is_lvalue_reference<T&> : true_type {};
template <class T>
struct is_enum : bool_constant<__is_enum(T)> {};
template <class T>
struct is_union : bool_constant<__is_union(T)> {};
template <class T>
struct is_class : bool_constant<__is_class(T)> {};
template <class T>
struct is_trivial : bool_constant<__is_trivial(T)> {};
template <class B, class D>
struct is_base_of : bool_constant<__is_base_of(B, D)> {};
template <class T>
struct underlying_type {
  using type = __underlying_type(T);
};
template <class T>
using underlying_type_t = typename underlying_type<T>::type;
template <class T>
struct alignment_of : integral_constant<size_t, alignof(T)> {};
template <class T>
struct decay {
  using U = remove_reference_t<T>;
  using type = conditional_t<is_array<U>::value, remove_extent_t<U>*, remove_cv_t<U>>;
};
template <class T>
using decay_t = typename decay<T>::type;

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
struct is_arithmetic : bool_constant<is_integral_v<T> || is_floating_point_v<T>> {};

#define MSL_TRAIT_VALUE(name) \
  template <class T>          \
  constexpr bool name##_v = name<T>::value;
MSL_TRAIT_VALUE(is_void)
MSL_TRAIT_VALUE(is_const)
MSL_TRAIT_VALUE(is_volatile)
MSL_TRAIT_VALUE(is_pointer)
MSL_TRAIT_VALUE(is_array)
MSL_TRAIT_VALUE(is_reference)
MSL_TRAIT_VALUE(is_lvalue_reference)
MSL_TRAIT_VALUE(is_enum)
MSL_TRAIT_VALUE(is_union)
MSL_TRAIT_VALUE(is_class)
MSL_TRAIT_VALUE(is_trivial)
MSL_TRAIT_VALUE(is_arithmetic)
#undef MSL_TRAIT_VALUE
template <class B, class D>
constexpr bool is_base_of_v = is_base_of<B, D>::value;

template <class T>
struct is_vector : bool_constant<(msl_shape<T>::size > 1)> {};
template <class T>
struct is_scalar : bool_constant<is_arithmetic<T>::value || is_enum_v<T> || is_pointer_v<T>> {};
template <class T>
constexpr bool is_vector_v = is_vector<T>::value;
template <class T>
constexpr bool is_scalar_v = is_scalar<T>::value;

template <class T>
T&& declval();
template <class T>
void msl_sink(T);
template <class From, class To, class = void>
struct is_convertible : false_type {};
template <class From, class To>
struct is_convertible<From, To, decltype(msl_sink<To>(declval<From>()))> : true_type {};
template <class From, class To>
constexpr bool is_convertible_v = is_convertible<From, To>::value;

MSL_CHANGE(make_unsigned)
MSL_CHANGE(make_signed)
#define MSL_SIGNS(signed_type, unsigned_type) \
  template <>                                 \
  struct make_unsigned<signed_type> {         \
    using type = unsigned_type;               \
  };                                          \
  template <>                                 \
  struct make_signed<unsigned_type> {         \
    using type = signed_type;                 \
  };
MSL_SIGNS(char, uchar)
MSL_SIGNS(short, ushort)
MSL_SIGNS(int, uint)
MSL_SIGNS(long, ulong)
#undef MSL_SIGNS
template <>
struct make_unsigned<int8_t> {
  using type = uchar;
};
#undef MSL_CHANGES
#undef MSL_CHANGE
}  // namespace metal

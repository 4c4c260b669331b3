// Vector constructors: translate.py writes float4(a, b) as metal::msl_make<float4>(a, b).
#pragma once

namespace metal {
// static_cast<To>(x): clang has no conversion between half and bfloat.
template <class To, class From>
constexpr inline To msl_cast(From x) {
  constexpr bool is_between = (is_same_v<To, half> && is_same_v<From, bfloat>) ||
                              (is_same_v<To, bfloat> && is_same_v<From, half>);
  if constexpr (is_between) {
    return (To)(float)x;
  } else {
    return static_cast<To>(x);
  }
}

// A component as another type: all but 0 is true, and clang's comparisons give -1 for it.
template <class To, class From>
constexpr inline To msl_component(From x) {
  if constexpr (is_same_v<From, int8_t>) {
    return (To)(x != 0);
  } else if constexpr (is_same_v<To, int8_t>) {
    return (To)(x != 0);
  } else {
    return msl_cast<To>(x);
  }
}

template <class E, class A>
constexpr inline void msl_append(E* elements, int& count, const A& part) {
  // a part may lie in any memory
  using shape = msl_shape<msl_value_t<A>>;
  if constexpr (shape::size == 1) {
    elements[count++] = msl_cast<E>(part);
  } else {
    for (int i = 0; i < shape::size; ++i) {
      elements[count++] = msl_component<E>((typename shape::element)part[i]);
    }
  }
}

// What msl_make<V> makes: a scalar, or a vector from as many components as it has, one for all
// of them, or none for zeros. Matrices and packed vectors have their own.
template <class V>
struct msl_maker {
  template <class... Parts>
  static constexpr V make(const Parts&... parts) {
    constexpr int size = msl_shape<V>::size;
    using E = typename msl_shape<V>::element;
    if constexpr (size == 1) {
      return (V)(parts + ...);
    } else {
      constexpr int given = (0 + ... + msl_shape<msl_value_t<Parts>>::size);
      constexpr bool is_filled = sizeof...(Parts) == 1 && given == 1;
      static_assert(given == size || is_filled || given == 0,
                    "wrong number of components in vector constructor");
      E elements[size + 4] = {};
      int count = 0;
      (msl_append(elements, count, parts), ...);
      return vector(elements, is_filled);
    }
  }

 private:
  template <class E>
  static constexpr V vector(const E* e, bool is_filled) {
    if (is_filled) return V(e[0]);
    if constexpr (msl_shape<V>::size == 2)
      return V{e[0], e[1]};
    else if constexpr (msl_shape<V>::size == 3)
      return V{e[0], e[1], e[2]};
    else
      return V{e[0], e[1], e[2], e[3]};
  }
};

template <class V, class... Parts>
constexpr inline V msl_make(const Parts&... parts) {
  return msl_maker<V>::make(parts...);
}

// The truth values that a comparison of vectors gives, as numbers: 1 for true.
constexpr inline bool msl_truth(bool truth) { return truth; }
template <class T, int N>
inline vec<int8_t, N> msl_truth(vec<T, N> comparison) {
  vec<int8_t, N> truth;
  for (int i = 0; i < N; ++i) truth[i] = comparison[i] != 0;
  return truth;
}
}  // namespace metal

// Vector constructors: translate.py writes float4(a, b) as metal::msl_make<float4>(a, b).
#pragma once

namespace metal {
template <class E, class A>
inline void msl_append(E* elements, int& count, A part) {
  if constexpr (msl_shape<A>::size == 1) {
    elements[count++] = (E)part;
  } else {
    for (int i = 0; i < msl_shape<A>::size; ++i) {
      elements[count++] = (E)part[i];
    }
  }
}

// From as many components as the vector has, one for all of them, or none for zeros.
template <class V, class... Parts>
inline V msl_make(Parts... parts) {
  constexpr int size = msl_shape<V>::size;
  using E = typename msl_shape<V>::element;
  if constexpr (size == 1) {
    return (V)(parts + ...);
  } else {
    constexpr int given = (0 + ... + msl_shape<Parts>::size);
    constexpr bool is_filled = sizeof...(Parts) == 1 && given == 1;
    static_assert(given == size || is_filled || given == 0,
                  "wrong number of components in vector constructor");
    E elements[size + 4] = {};
    int count = 0;
    (msl_append(elements, count, parts), ...);
    V vector;
    for (int i = 0; i < size; ++i) {
      vector[i] = elements[is_filled ? 0 : i];
    }
    return vector;
  }
}
}  // namespace metal

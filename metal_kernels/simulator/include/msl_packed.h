// Packed vectors: aligned like one component. Those of three take the room of three.
#pragma once

namespace metal {
template <class T>
struct msl_packed3 {
  using vector = vec<T, 3>;
  union {
    struct {
      T x, y, z;
    };
    struct {
      T r, g, b;
    };
    T components[3];
  };
  constexpr operator vector() const { return vector{x, y, z}; }
  constexpr T& operator[](int i) { return components[i]; }
  constexpr const T& operator[](int i) const { return components[i]; }
  constexpr msl_packed3& operator=(vector v) {
    x = v.x, y = v.y, z = v.z;
    return *this;
  }
  static auto msl_members() {
    return [](auto& to, auto& from) { to.x = from.x, to.y = from.y, to.z = from.z; };
  }
  template <class Self>
  static constexpr auto& msl_element(Self& self, int i) {
    return self.components[i];
  }
};
template <class P>
using msl_vector_of_packed = typename msl_value_t<P>::vector;

template <class P, class V = msl_vector_of_packed<P>>
constexpr inline void msl_assign(P& packed, msl_given<V> v) {
  packed.x = v.x, packed.y = v.y, packed.z = v.z;
}

template <class T>
struct msl_maker<msl_packed3<T>> {
  template <class... Parts>
  static constexpr msl_packed3<T> make(const Parts&... parts) {
    vec<T, 3> v = msl_make<vec<T, 3>>(parts...);
    return {v.x, v.y, v.z};
  }
};

// Between two vectors clang finds the arithmetic by itself.
#define MSL_PACKED_OPERATOR(op)                                              \
  template <class T>                                                         \
  constexpr inline vec<T, 3> operator op(msl_packed3<T> a, msl_given<T> b) { \
    return vec<T, 3>(a) op b;                                                \
  }                                                                          \
  template <class T>                                                         \
  constexpr inline vec<T, 3> operator op(msl_given<T> a, msl_packed3<T> b) { \
    return a op vec<T, 3>(b);                                                \
  }                                                                          \
  template <class P, class V = msl_vector_of_packed<P>>                      \
  constexpr inline P& operator op##=(P& packed, msl_given<V> v) {            \
    msl_assign(packed, V{packed.x, packed.y, packed.z} op v);                \
    return packed;                                                           \
  }
MSL_PACKED_OPERATOR(+)
MSL_PACKED_OPERATOR(-)
MSL_PACKED_OPERATOR(*)
MSL_PACKED_OPERATOR(/)
#undef MSL_PACKED_OPERATOR
}  // namespace metal

template <class T>
struct msl_shape<metal::msl_packed3<T>> {
  static constexpr int size = 3;
  using element = T;
};

#define MSL_PACKED(type)                                                                    \
  typedef type packed_##type##2 __attribute__((ext_vector_type(2), aligned(sizeof(type)))); \
  typedef metal::msl_packed3<type> packed_##type##3;                                        \
  typedef type packed_##type##4 __attribute__((ext_vector_type(4), aligned(sizeof(type))));
MSL_PACKED(char)
MSL_PACKED(uchar)
MSL_PACKED(short)
MSL_PACKED(ushort)
MSL_PACKED(int)
MSL_PACKED(uint)
MSL_PACKED(long)
MSL_PACKED(ulong)
MSL_PACKED(half)
MSL_PACKED(float)
MSL_PACKED(bfloat)
#undef MSL_PACKED

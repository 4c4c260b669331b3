// Functions across the lanes of a SIMD-group or of its quads of four, and barriers.
//
// Each call hands an msl_op to the runtime, which resolves those of all lanes that wait at
// the same place at once. The place is the caller's: default arguments take it.
#pragma once

#define MSL_PLACE \
  const char *file = __builtin_FILE(), int line = __builtin_LINE(), int column = __builtin_COLUMN()
#define MSL_PLACE_HERE file, line, column

namespace metal {
constexpr int msl_lanes = 32;

inline bool msl_is_active(unsigned active, int lane) { return active >> lane & 1; }

enum msl_reduce_order { msl_ascending, msl_descending, msl_sequential };

// Of each run of `width` lanes: the SIMD-group or its quads.
template <class T, class Op, int width>
void msl_reduce_sequential(msl_op** lanes, unsigned active) {
  for (int group = 0; group < msl_lanes; group += width) {
    T total;
    bool any = false;
    for (int i = group; i < group + width; ++i) {
      if (!msl_is_active(active, i)) continue;
      const T& value = *(const T*)lanes[i]->in;
      total = any ? Op()(total, value) : value;
      any = true;
    }
    for (int i = group; i < group + width; ++i) {
      if (msl_is_active(active, i)) *(T*)lanes[i]->out = total;
    }
  }
}

// The butterfly below, of all lanes.
template <class T, class Op, int width>
void msl_reduce_all(msl_op** lanes) {
  T values[2][msl_lanes];
  for (int i = 0; i < msl_lanes; ++i) values[0][i] = *(const T*)lanes[i]->in;
  int from = 0;
  for (int step = 1; step < width; step *= 2, from ^= 1) {
    int bit = __msl_reduce_order() == msl_descending ? width / 2 / step : step;
    for (int i = 0; i < msl_lanes; ++i) {
      values[from ^ 1][i] = Op()(values[from][i & ~bit], values[from][i | bit]);
    }
  }
  for (int i = 0; i < msl_lanes; ++i) *(T*)lanes[i]->out = values[from][i];
}

// A butterfly: lanes exchange with the one whose number differs in one bit. Ascending bits
// are what Apple's GPUs are said to use.
template <class T, class Op, int width>
void msl_reduce(msl_op** lanes, unsigned active) {
  if (__msl_reduce_order() == msl_sequential) {
    return msl_reduce_sequential<T, Op, width>(lanes, active);
  }
  if (active == ~0u) return msl_reduce_all<T, Op, width>(lanes);
  T values[msl_lanes];
  bool given[msl_lanes];
  for (int i = 0; i < msl_lanes; ++i) {
    given[i] = msl_is_active(active, i);
    if (given[i]) values[i] = *(const T*)lanes[i]->in;
  }
  for (int step = 1; step < width; step *= 2) {
    int bit = __msl_reduce_order() == msl_descending ? width / 2 / step : step;
    T next[msl_lanes];
    bool next_given[msl_lanes];
    for (int i = 0; i < msl_lanes; ++i) {
      int low = i & ~bit, high = i | bit;
      next_given[i] = given[low] || given[high];
      if (given[low] && given[high]) {
        next[i] = Op()(values[low], values[high]);
      } else if (next_given[i]) {
        next[i] = values[given[low] ? low : high];
      }
    }
    for (int i = 0; i < msl_lanes; ++i) {
      given[i] = next_given[i];
      if (given[i]) values[i] = next[i];
    }
  }
  for (int i = 0; i < msl_lanes; ++i) {
    if (msl_is_active(active, i)) *(T*)lanes[i]->out = values[i];
  }
}

template <class T, class Op, bool inclusive, int width>
void msl_prefix(msl_op** lanes, unsigned active) {
  T total;
  bool any = false;
  for (int i = 0; i < msl_lanes; ++i) {
    if (i % width == 0) {
      total = Op::template neutral<T>();
      any = false;
    }
    if (!msl_is_active(active, i)) continue;
    T value = *(const T*)lanes[i]->in;
    if (!inclusive) *(T*)lanes[i]->out = total;
    total = any ? Op()(total, value) : value;
    any = true;
    if (inclusive) *(T*)lanes[i]->out = total;
  }
}

#define MSL_OPERATION(name, expression)                  \
  struct name {                                          \
    template <class T>                                   \
    T operator()(T a, T b) const {                       \
      return (T)(expression);                            \
    }                                                    \
    template <class T>                                   \
    static T neutral() {                                 \
      return is_same_v<name, msl_product> ? (T)1 : (T)0; \
    }                                                    \
  };
struct msl_product;
MSL_OPERATION(msl_sum, a + b)
MSL_OPERATION(msl_product, (a * b))
MSL_OPERATION(msl_min, min(a, b))
MSL_OPERATION(msl_max, max(a, b))
MSL_OPERATION(msl_and, (a & b))
MSL_OPERATION(msl_or, a | b)
MSL_OPERATION(msl_xor, a ^ b)
#undef MSL_OPERATION

template <class T>
constexpr void msl_check_simd_type() {
  static_assert(sizeof(typename msl_shape<T>::element) <= 4 && !is_same_v<T, bool>,
                "SIMD functions take 8- to 32-bit scalars and vectors of them");
}

// Functions of one place differ by their kinds; __COUNTER__ gives each a number of its own.
template <class T>
MSL_CONVERGENT inline T msl_collective(void (*resolve)(msl_op**, unsigned), const void* in,
                                       const void* fill, unsigned argument, int kind, MSL_PLACE) {
  T out;
  msl_op op{resolve, in, fill, &out, argument, kind, file, line, column};
  __msl_collective(&op);
  return out;
}

#define MSL_REDUCTION_IN(group, width, name, Op)                                         \
  template <class T>                                                                     \
  MSL_CONVERGENT inline T group##_##name(T value, MSL_PLACE) {                           \
    msl_check_simd_type<T>();                                                            \
    return msl_collective<T>(&msl_reduce<T, Op, width>, &value, nullptr, 0, __COUNTER__, \
                             MSL_PLACE_HERE);                                            \
  }
#define MSL_BITWISE_IN(group, width, name, Op)                                                  \
  template <class T>                                                                            \
  MSL_CONVERGENT inline T group##_##name(T value, MSL_PLACE) {                                  \
    msl_check_simd_type<T>();                                                                   \
    static_assert(is_integral_v<typename msl_shape<T>::element>, "bits are those of integers"); \
    return msl_collective<T>(&msl_reduce<T, Op, width>, &value, nullptr, 0, __COUNTER__,        \
                             MSL_PLACE_HERE);                                                   \
  }
#define MSL_PREFIX_IN(group, width, name, Op, inclusive)                               \
  template <class T>                                                                   \
  MSL_CONVERGENT inline T group##_prefix_##name(T value, MSL_PLACE) {                  \
    msl_check_simd_type<T>();                                                          \
    return msl_collective<T>(&msl_prefix<T, Op, inclusive, width>, &value, nullptr, 0, \
                             __COUNTER__, MSL_PLACE_HERE);                             \
  }
#define MSL_REDUCTIONS(group, width)                                \
  MSL_REDUCTION_IN(group, width, sum, msl_sum)                      \
  MSL_REDUCTION_IN(group, width, product, msl_product)              \
  MSL_REDUCTION_IN(group, width, min, msl_min)                      \
  MSL_REDUCTION_IN(group, width, max, msl_max)                      \
  MSL_BITWISE_IN(group, width, and, msl_and)                        \
  MSL_BITWISE_IN(group, width, or, msl_or)                          \
  MSL_BITWISE_IN(group, width, xor, msl_xor)                        \
  MSL_PREFIX_IN(group, width, inclusive_sum, msl_sum, true)         \
  MSL_PREFIX_IN(group, width, exclusive_sum, msl_sum, false)        \
  MSL_PREFIX_IN(group, width, inclusive_product, msl_product, true) \
  MSL_PREFIX_IN(group, width, exclusive_product, msl_product, false)
MSL_REDUCTIONS(simd, 32)
MSL_REDUCTIONS(quad, 4)
#undef MSL_REDUCTIONS
#undef MSL_PREFIX_IN
#undef MSL_BITWISE_IN
#undef MSL_REDUCTION_IN

enum msl_direction {
  msl_from_lane,
  msl_from_xor,
  msl_from_below,
  msl_from_above,
  msl_rotate_up,
  msl_rotate_down,
};

// The lane of a group of `width` that `lane` takes from; beyond its ends where there is none.
constexpr int msl_source_lane(msl_direction direction, int lane, int argument, int width) {
  return direction == msl_from_lane    ? argument
         : direction == msl_from_xor   ? lane ^ argument
         : direction == msl_from_below ? lane - argument
         : direction == msl_from_above ? lane + argument
         : direction == msl_rotate_up  ? (lane - argument) & (width - 1)
                                       : (lane + argument) & (width - 1);
}

template <class T, msl_direction direction, int width, bool fills>
void msl_shuffle(msl_op** lanes, unsigned active) {
  constexpr bool shifts = direction == msl_from_below || direction == msl_from_above;
  for (int i = 0; i < msl_lanes; ++i) {
    if (!msl_is_active(active, i)) continue;
    int group = i & ~(width - 1);
    int source = msl_source_lane(direction, i & (width - 1), (int)lanes[i]->argument, width);
    bool is_beyond = source < 0 || source >= width;
    if (shifts && is_beyond && !fills) {
      *(T*)lanes[i]->out = *(const T*)lanes[i]->in;
      continue;
    }
    bool takes_fill = shifts && is_beyond;
    if (takes_fill) source = (source + width) % width;
    if (source < 0 || source >= width || !msl_is_active(active, group + source)) {
      __msl_bad_shuffle(lanes[i], source);
      __builtin_memset(lanes[i]->out, 0xff, sizeof(T));
      continue;
    }
    const msl_op* other = lanes[group + source];
    *(T*)lanes[i]->out = *(const T*)(takes_fill ? other->fill : other->in);
  }
}

#define MSL_SHUFFLE_IN(group, width, name, direction)                                             \
  template <class T>                                                                              \
  MSL_CONVERGENT inline T group##_##name(T value, ushort argument, MSL_PLACE) {                   \
    msl_check_simd_type<T>();                                                                     \
    return msl_collective<T>(&msl_shuffle<T, direction, width, false>, &value, nullptr, argument, \
                             __COUNTER__, MSL_PLACE_HERE);                                        \
  }
#define MSL_FILL_IN(group, width, name, direction)                                             \
  template <class T>                                                                           \
  MSL_CONVERGENT inline T group##_shuffle_and_fill_##name(T value, T fill, ushort argument,    \
                                                          MSL_PLACE) {                         \
    msl_check_simd_type<T>();                                                                  \
    return msl_collective<T>(&msl_shuffle<T, direction, width, true>, &value, &fill, argument, \
                             __COUNTER__, MSL_PLACE_HERE);                                     \
  }
#define MSL_SHUFFLES(group, width)                                   \
  MSL_SHUFFLE_IN(group, width, shuffle, msl_from_lane)               \
  MSL_SHUFFLE_IN(group, width, broadcast, msl_from_lane)             \
  MSL_SHUFFLE_IN(group, width, shuffle_xor, msl_from_xor)            \
  MSL_SHUFFLE_IN(group, width, shuffle_up, msl_from_below)           \
  MSL_SHUFFLE_IN(group, width, shuffle_down, msl_from_above)         \
  MSL_SHUFFLE_IN(group, width, shuffle_rotate_up, msl_rotate_up)     \
  MSL_SHUFFLE_IN(group, width, shuffle_rotate_down, msl_rotate_down) \
  MSL_FILL_IN(group, width, up, msl_from_below)                      \
  MSL_FILL_IN(group, width, down, msl_from_above)
MSL_SHUFFLES(simd, 32)
MSL_SHUFFLES(quad, 4)
#undef MSL_SHUFFLES
#undef MSL_FILL_IN
#undef MSL_SHUFFLE_IN

// The same in each run of `modulo` lanes.
template <class T>
MSL_CONVERGENT inline T simd_shuffle_and_fill_up(T value, T fill, ushort delta, ushort modulo,
                                                 MSL_PLACE) {
  int lane = __msl_lane();
  bool is_inside = lane % modulo >= delta;
  T moved = simd_shuffle(value, is_inside ? lane - delta : lane, MSL_PLACE_HERE);
  T filled = simd_shuffle(fill, is_inside ? lane : lane - delta + modulo, MSL_PLACE_HERE);
  return is_inside ? moved : filled;
}
template <class T>
MSL_CONVERGENT inline T simd_shuffle_and_fill_down(T value, T fill, ushort delta, ushort modulo,
                                                   MSL_PLACE) {
  int lane = __msl_lane();
  bool is_inside = lane % modulo + delta < modulo;
  T moved = simd_shuffle(value, is_inside ? lane + delta : lane, MSL_PLACE_HERE);
  T filled = simd_shuffle(fill, is_inside ? lane : lane + delta - modulo, MSL_PLACE_HERE);
  return is_inside ? moved : filled;
}

enum class mem_flags : unsigned {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
  mem_object_data = 16,
};
inline constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return (mem_flags)((unsigned)a | (unsigned)b);
}
MSL_CONVERGENT inline void threadgroup_barrier(mem_flags flags, MSL_PLACE) {
  __msl_threadgroup_barrier((unsigned)flags, MSL_PLACE_HERE);
}
MSL_CONVERGENT inline void simdgroup_barrier(mem_flags flags, MSL_PLACE) {
  __msl_simdgroup_barrier((unsigned)flags, MSL_PLACE_HERE);
}
}  // namespace metal

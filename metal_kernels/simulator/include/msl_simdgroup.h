// Functions across the lanes of a SIMD-group or a quad, and barriers.
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

// ---- reductions

enum msl_reduce_order { msl_ascending, msl_descending, msl_sequential };

template <class T, class Op>
void msl_reduce_sequential(msl_op** lanes, unsigned active) {
  int first = __builtin_ctz(active);
  T total = *(const T*)lanes[first]->in;
  for (int i = first + 1; i < msl_lanes; ++i) {
    if (msl_is_active(active, i)) total = Op()(total, *(const T*)lanes[i]->in);
  }
  for (int i = 0; i < msl_lanes; ++i) {
    if (msl_is_active(active, i)) *(T*)lanes[i]->out = total;
  }
}

// A butterfly: lanes exchange with the one whose number differs in one bit. Ascending bits
// are what Apple's GPUs are said to use.
template <class T, class Op>
void msl_reduce(msl_op** lanes, unsigned active) {
  if (__msl_reduce_order() == msl_sequential) return msl_reduce_sequential<T, Op>(lanes, active);
  T values[msl_lanes];
  bool given[msl_lanes];
  for (int i = 0; i < msl_lanes; ++i) {
    given[i] = msl_is_active(active, i);
    if (given[i]) values[i] = *(const T*)lanes[i]->in;
  }
  for (int step = 0; step < 5; ++step) {
    int bit = __msl_reduce_order() == msl_descending ? 16 >> step : 1 << step;
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

template <class T, class Op, bool inclusive>
void msl_prefix(msl_op** lanes, unsigned active) {
  T total = Op::template neutral<T>();
  bool any = false;
  for (int i = 0; i < msl_lanes; ++i) {
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

#define MSL_REDUCTION(name, Op)                                                                    \
  template <class T>                                                                               \
  MSL_CONVERGENT inline T simd_##name(T value, MSL_PLACE) {                                        \
    msl_check_simd_type<T>();                                                                      \
    return msl_collective<T>(&msl_reduce<T, Op>, &value, nullptr, 0, __COUNTER__, MSL_PLACE_HERE); \
  }
MSL_REDUCTION(sum, msl_sum)
MSL_REDUCTION(product, msl_product)
MSL_REDUCTION(min, msl_min)
MSL_REDUCTION(max, msl_max)
MSL_REDUCTION(and, msl_and)
MSL_REDUCTION(or, msl_or)
MSL_REDUCTION(xor, msl_xor)
#undef MSL_REDUCTION

#define MSL_PREFIX(name, Op, inclusive)                                                      \
  template <class T>                                                                         \
  MSL_CONVERGENT inline T simd_prefix_##name(T value, MSL_PLACE) {                           \
    msl_check_simd_type<T>();                                                                \
    return msl_collective<T>(&msl_prefix<T, Op, inclusive>, &value, nullptr, 0, __COUNTER__, \
                             MSL_PLACE_HERE);                                                \
  }
MSL_PREFIX(inclusive_sum, msl_sum, true)
MSL_PREFIX(exclusive_sum, msl_sum, false)
MSL_PREFIX(inclusive_product, msl_product, true)
MSL_PREFIX(exclusive_product, msl_product, false)
#undef MSL_PREFIX

// ---- shuffles

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

#define MSL_SHUFFLE(name, direction)                                                           \
  template <class T>                                                                           \
  MSL_CONVERGENT inline T simd_##name(T value, ushort argument, MSL_PLACE) {                   \
    msl_check_simd_type<T>();                                                                  \
    return msl_collective<T>(&msl_shuffle<T, direction, 32, false>, &value, nullptr, argument, \
                             __COUNTER__, MSL_PLACE_HERE);                                     \
  }                                                                                            \
  template <class T>                                                                           \
  MSL_CONVERGENT inline T quad_##name(T value, ushort argument, MSL_PLACE) {                   \
    return msl_collective<T>(&msl_shuffle<T, direction, 4, false>, &value, nullptr, argument,  \
                             __COUNTER__, MSL_PLACE_HERE);                                     \
  }
MSL_SHUFFLE(shuffle, msl_from_lane)
MSL_SHUFFLE(broadcast, msl_from_lane)
MSL_SHUFFLE(shuffle_xor, msl_from_xor)
MSL_SHUFFLE(shuffle_up, msl_from_below)
MSL_SHUFFLE(shuffle_down, msl_from_above)
MSL_SHUFFLE(shuffle_rotate_up, msl_rotate_up)
MSL_SHUFFLE(shuffle_rotate_down, msl_rotate_down)
#undef MSL_SHUFFLE

#define MSL_SHUFFLE_AND_FILL(name, direction)                                               \
  template <class T>                                                                        \
  MSL_CONVERGENT inline T simd_shuffle_and_fill_##name(T value, T fill, ushort argument,    \
                                                       MSL_PLACE) {                         \
    return msl_collective<T>(&msl_shuffle<T, direction, 32, true>, &value, &fill, argument, \
                             __COUNTER__, MSL_PLACE_HERE);                                  \
  }
MSL_SHUFFLE_AND_FILL(up, msl_from_below)
MSL_SHUFFLE_AND_FILL(down, msl_from_above)
#undef MSL_SHUFFLE_AND_FILL

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

// ---- votes

struct simd_vote {
  using vote_t = ulong;
  ulong mask;
  explicit simd_vote(ulong lanes) : mask(lanes) {}
  explicit operator ulong() const { return mask; }
};

inline void msl_ballot(msl_op** lanes, unsigned active) {
  ulong votes = 0;
  for (int i = 0; i < msl_lanes; ++i) {
    if (msl_is_active(active, i) && *(const bool*)lanes[i]->in) votes |= 1ul << i;
  }
  for (int i = 0; i < msl_lanes; ++i) {
    if (msl_is_active(active, i)) *(ulong*)lanes[i]->out = votes;
  }
}

MSL_CONVERGENT inline simd_vote simd_ballot(bool vote, MSL_PLACE) {
  return simd_vote(
      msl_collective<ulong>(&msl_ballot, &vote, nullptr, 0, __COUNTER__, MSL_PLACE_HERE));
}
MSL_CONVERGENT inline simd_vote simd_active_threads_mask(MSL_PLACE) {
  return simd_ballot(true, MSL_PLACE_HERE);
}
MSL_CONVERGENT inline bool simd_any(bool vote, MSL_PLACE) {
  return simd_ballot(vote, MSL_PLACE_HERE).mask != 0;
}
MSL_CONVERGENT inline bool simd_all(bool vote, MSL_PLACE) {
  return simd_ballot(!vote, MSL_PLACE_HERE).mask == 0;
}
MSL_CONVERGENT inline bool simd_is_first(MSL_PLACE) {
  return __builtin_ctzl(simd_active_threads_mask(MSL_PLACE_HERE).mask) == (int)__msl_lane();
}
template <class T>
MSL_CONVERGENT inline T simd_broadcast_first(T value, MSL_PLACE) {
  ulong active = simd_active_threads_mask(MSL_PLACE_HERE).mask;
  return simd_shuffle(value, (ushort)__builtin_ctzl(active), MSL_PLACE_HERE);
}

// ---- barriers

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

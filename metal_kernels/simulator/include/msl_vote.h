// Which lanes of a SIMD-group, or of a quad, are active or say yes.
#pragma once

namespace metal {
// The lanes that said yes, as bits; there are `width` of them.
template <int width>
struct msl_vote {
  using vote_t = ulong;
  explicit constexpr msl_vote(vote_t lanes = 0) : mask(lanes) {}
  explicit constexpr operator vote_t() const { return mask; }
  constexpr bool all() const { return mask == ~0ul >> (64 - width); }
  constexpr bool any() const { return mask != 0; }

 private:
  vote_t mask;
};
typedef msl_vote<32> simd_vote;
typedef msl_vote<4> quad_vote;

template <int width>
void msl_ballot(msl_op** lanes, unsigned active) {
  for (int group = 0; group < msl_lanes; group += width) {
    ulong votes = 0;
    for (int i = 0; i < width; ++i) {
      int lane = group + i;
      if (msl_is_active(active, lane) && *(const bool*)lanes[lane]->in) votes |= 1ul << i;
    }
    for (int lane = group; lane < group + width; ++lane) {
      if (msl_is_active(active, lane)) *(ulong*)lanes[lane]->out = votes;
    }
  }
}

#define MSL_VOTES(group, width)                                                                   \
  MSL_CONVERGENT inline group##_vote group##_ballot(bool vote, MSL_PLACE) {                       \
    return group##_vote(msl_collective<ulong>(&msl_ballot<width>, &vote, nullptr, 0, __COUNTER__, \
                                              MSL_PLACE_HERE));                                   \
  }                                                                                               \
  MSL_CONVERGENT inline group##_vote group##_active_threads_mask(MSL_PLACE) {                     \
    return group##_ballot(true, MSL_PLACE_HERE);                                                  \
  }                                                                                               \
  MSL_CONVERGENT inline bool group##_any(bool vote, MSL_PLACE) {                                  \
    return group##_ballot(vote, MSL_PLACE_HERE).any();                                            \
  }                                                                                               \
  MSL_CONVERGENT inline bool group##_all(bool vote, MSL_PLACE) {                                  \
    return !group##_ballot(!vote, MSL_PLACE_HERE).any();                                          \
  }                                                                                               \
  MSL_CONVERGENT inline bool group##_is_first(MSL_PLACE) {                                        \
    ulong active = (ulong)group##_active_threads_mask(MSL_PLACE_HERE);                            \
    return __builtin_ctzl(active) == (int)(__msl_lane() % width);                                 \
  }                                                                                               \
  template <class T>                                                                              \
  MSL_CONVERGENT inline T group##_broadcast_first(T value, MSL_PLACE) {                           \
    ulong active = (ulong)group##_active_threads_mask(MSL_PLACE_HERE);                            \
    return group##_shuffle(value, (ushort)__builtin_ctzl(active), MSL_PLACE_HERE);                \
  }
MSL_VOTES(simd, 32)
MSL_VOTES(quad, 4)
#undef MSL_VOTES
}  // namespace metal

// Which thread runs next, and what happens where threads wait for each other.
//
// Threads switch only where they synchronise. In forward and reverse order a SIMD-group runs
// as far ahead of the others as it can; the random order mixes that with lockstep.
#include <stdio.h>
#include <string.h>

#include "state.h"

// Lanes may wait by a loop for what another SIMD-group does: it has to get its turn.
constexpr uint32_t kMostRoundsAhead = 256;

enum MemoryFlags { kFlagDevice = 1, kFlagThreadgroup = 2 };

uint32_t random_number() {
  uint64_t& x = launch.random_state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return (uint32_t)(x >> 11);
}

void shuffle(uint32_t* items, uint32_t count) {
  for (uint32_t i = count; i > 1; --i) {
    uint32_t j = random_number() % i;
    uint32_t item = items[i - 1];
    items[i - 1] = items[j];
    items[j] = item;
  }
}

static void wait_for(FiberState state, Place place, unsigned flags) {
  Fiber* fiber = launch.current;
  fiber->state = state;
  fiber->own_place = place;
  fiber->place = &fiber->own_place;
  fiber->flags = flags;
  yield_to_scheduler();
}

extern "C" void __msl_place(unsigned site) { launch.current->simd_place = launch.sites[site]; }

extern "C" void __msl_collective(msl_op* operation) {
  launch.result->simd_operations++;
  Fiber* fiber = launch.current;
  Place place = {operation->line, operation->column, operation->file};
  if (fiber->simd_place.file) {
    place = fiber->simd_place;
    fiber->simd_place = {};
  }
  fiber->operation = operation;
  wait_for(kWaitsForSimd, place, 0);
}

extern "C" void __msl_threadgroup_barrier(unsigned flags, const char* file, int line, int column) {
  wait_for(kWaitsForThreadgroup, {line, column, file}, flags);
}

extern "C" void __msl_simdgroup_barrier(unsigned flags, const char* file, int line, int column) {
  wait_for(kWaitsForSimdgroup, {line, column, file}, flags);
}

extern "C" unsigned __msl_lane() { return launch.current->thread.lane; }

extern "C" int __msl_reduce_order() { return (int)launch.config.reduce_order; }

extern "C" void __msl_bad_shuffle(msl_op* operation, int source_lane) {
  // the function is resolved in the name of its first lane, which need not be the one
  Fiber* leader = launch.current;
  Fiber* lanes = leader - leader->thread.lane;
  while (launch.current->operation != operation || launch.current->state != kWaitsForSimd) {
    launch.current = launch.current == lanes + kLanes - 1 ? lanes : launch.current + 1;
  }
  char message[160];
  snprintf(message, sizeof message, "takes from lane %d, which is out of range or not active",
           source_lane);
  report(MSL_BAD_SHUFFLE, *launch.current->place, "", 0, message);
  launch.current = leader;
}

struct Lanes {
  Fiber* fibers;
  uint32_t count;
};

static Lanes lanes_of(uint32_t simdgroup) {
  uint32_t first = simdgroup * kLanes;
  uint32_t rest = launch.fiber_count - first;
  return {launch.fibers + first, rest < kLanes ? rest : kLanes};
}

static uint32_t lanes_in(Lanes lanes, FiberState state) {
  uint32_t mask = 0;
  for (uint32_t i = 0; i < lanes.count; ++i) {
    mask |= (uint32_t)(lanes.fibers[i].state == state) << i;
  }
  return mask;
}

static bool same_place(const Place& a, const Place& b) {
  return a.line == b.line && a.column == b.column &&
         (a.file == b.file || strcmp(a.file, b.file) == 0);
}

static void report_at(const Fiber* fiber, msl_kind kind, const char* message,
                      Conflict conflict = {}) {
  launch.current = const_cast<Fiber*>(fiber);
  report(kind, *fiber->place, "", 0, message, conflict);
  launch.current = nullptr;
}

// The lanes that wait at the earliest place take part; the others have returned or wait
// elsewhere.
static void resolve_simd_function(uint32_t simdgroup, Lanes lanes, uint32_t waiting) {
  Fiber* leader = nullptr;
  for (uint32_t i = 0; i < lanes.count; ++i) {
    Fiber* fiber = &lanes.fibers[i];
    bool waits = waiting >> i & 1;
    bool earlier =
        leader &&
        (fiber->place->line < leader->place->line ||
         (fiber->place->line == leader->place->line && fiber->place->column < leader->place->column));
    if (waits && (!leader || earlier)) {
      leader = fiber;
    }
  }
  uint32_t active = 0;
  msl_op* operations[kLanes] = {};
  for (uint32_t i = 0; i < lanes.count; ++i) {
    Fiber* fiber = &lanes.fibers[i];
    if (waiting >> i & 1 && same_place(*fiber->place, *leader->place) &&
        fiber->operation->kind == leader->operation->kind) {
      active |= 1u << i;
      operations[i] = fiber->operation;
    }
  }
  uint32_t all = lanes.count == kLanes ? UINT32_MAX : (1u << lanes.count) - 1;
  if (active != all) {
    uint32_t returned = lanes_in(lanes, kDone);
    uint32_t elsewhere = all & ~active & ~returned;
    char message[160];
    snprintf(message, sizeof message,
             "only lanes %08x take part; %08x wait elsewhere, %08x have returned", active,
             elsewhere, returned);
    report_at(leader, elsewhere ? MSL_SIMD_DIVERGENT : MSL_SIMD_PARTIAL, message);
  }
  launch.current = leader;
  leader->operation->resolve(operations, active);
  launch.current = nullptr;
  for (uint32_t i = 0; i < lanes.count; ++i) {
    if (active >> i & 1) {
      lanes.fibers[i].state = kReady;
    }
  }
  launch.simdgroups[simdgroup].synchronised = ++launch.now;
}

// A barrier orders the memory that its flags name.
static void order_memory(uint32_t times[kSpaces], unsigned flags) {
  if (flags & kFlagDevice) {
    times[kDeviceMemory] = launch.now;
  }
  if (flags & kFlagThreadgroup) {
    times[kThreadgroupMemory] = launch.now;
  }
}

static void resolve_simdgroup_barrier(uint32_t simdgroup, Lanes lanes, uint32_t waiting) {
  Fiber* first = nullptr;
  unsigned flags = ~0u;
  for (uint32_t i = 0; i < lanes.count; ++i) {
    if (!(waiting >> i & 1)) {
      continue;
    }
    Fiber* fiber = &lanes.fibers[i];
    if (first && !same_place(*first->place, *fiber->place)) {
      report_at(first, MSL_SIMDGROUP_BARRIER_DIVERGENCE,
                "lanes wait at different SIMD-group barriers",
                {fiber->thread.index_in_threadgroup, fiber->place->line});
    }
    first = first ? first : fiber;
    flags &= fiber->flags;
  }
  if (lanes_in(lanes, kWaitsForThreadgroup)) {
    report_at(first, MSL_SIMDGROUP_BARRIER_DIVERGENCE,
              "other lanes wait at a threadgroup barrier instead");
  }
  SimdgroupTimes& times = launch.simdgroups[simdgroup];
  times.synchronised = ++launch.now;
  order_memory(times.barrier, flags);
  for (uint32_t i = 0; i < lanes.count; ++i) {
    if (waiting >> i & 1) {
      lanes.fibers[i].state = kReady;
    }
  }
}

// When no lane can run: let those go on that wait for their SIMD-group only.
static void resolve_simdgroup(uint32_t simdgroup) {
  Lanes lanes = lanes_of(simdgroup);
  if (lanes_in(lanes, kReady)) {
    return;
  }
  uint32_t simd = lanes_in(lanes, kWaitsForSimd);
  uint32_t barrier = lanes_in(lanes, kWaitsForSimdgroup);
  if (simd) {
    resolve_simd_function(simdgroup, lanes, simd);
  } else if (barrier) {
    resolve_simdgroup_barrier(simdgroup, lanes, barrier);
  }
}

static void order_indices(uint32_t* indices, uint32_t count) {
  bool reverse = launch.config.order == MSL_REVERSE;
  for (uint32_t i = 0; i < count; ++i) {
    indices[i] = reverse ? count - 1 - i : i;
  }
  if (launch.config.order == MSL_RANDOM) {
    shuffle(indices, count);
  }
}

// Runs every lane that can run, once. Returns whether any did.
static bool run_lanes(uint32_t simdgroup) {
  Lanes lanes = lanes_of(simdgroup);
  uint32_t order[kLanes];
  order_indices(order, lanes.count);
  bool ran = false;
  for (uint32_t i = 0; i < lanes.count; ++i) {
    Fiber* fiber = &lanes.fibers[order[i]];
    if (fiber->state == kReady) {
      run_fiber(fiber);
      ran = true;
    }
  }
  return ran;
}

static void run_simdgroup(uint32_t simdgroup) {
  bool ahead = launch.config.order != MSL_RANDOM || random_number() % 2 == 0;
  uint32_t rounds = ahead ? kMostRoundsAhead : 1 + random_number() % 4;
  for (uint32_t i = 0; i < rounds; ++i) {
    bool ran = run_lanes(simdgroup);
    resolve_simdgroup(simdgroup);
    if (!ran || !lanes_in(lanes_of(simdgroup), kReady)) {
      return;
    }
  }
}

// Returns whether all threads that have not returned wait at a threadgroup barrier.
static bool resolve_threadgroup_barrier(uint32_t done) {
  Fiber* first = nullptr;
  Fiber* other = nullptr;
  unsigned flags = ~0u;
  for (uint32_t i = 0; i < launch.fiber_count; ++i) {
    Fiber* fiber = &launch.fibers[i];
    if (fiber->state == kDone) {
      continue;
    }
    if (fiber->state != kWaitsForThreadgroup) {
      return false;
    }
    flags &= fiber->flags;
    first = first ? first : fiber;
    if (!same_place(*first->place, *fiber->place)) {
      other = fiber;
    }
  }
  if (other) {
    report_at(first, MSL_BARRIER_DIVERGENCE,
              "threads of one threadgroup wait at different barriers",
              {other->thread.index_in_threadgroup, other->place->line});
  }
  if (done) {
    char message[160];
    snprintf(message, sizeof message, "%u of %u threads have returned and never reach this barrier",
             done, launch.fiber_count);
    report_at(first, MSL_BARRIER_AFTER_EXIT, message);
  }
  launch.result->barriers++;
  launch.now++;
  order_memory(launch.barrier, flags);
  for (uint32_t i = 0; i < launch.fiber_count; ++i) {
    if (launch.fibers[i].state == kWaitsForThreadgroup) {
      launch.fibers[i].state = kReady;
    }
  }
  for (uint32_t i = 0; i < launch.simdgroup_count; ++i) {
    launch.simdgroups[i].synchronised = ++launch.now;
  }
  return true;
}

extern "C" __attribute__((noinline)) void msl_thread_begins() { asm volatile(""); }

void run_thread() {
  if (launch.config.debugs && is_traced()) {
    msl_thread_begins();
  }
  launch.entry(launch.arguments, &launch.current->thread);
}

// Threads that wait for nobody, on the stack of the first.
void run_plain_threads() {
  Fiber* fiber = launch.current;
  uint32_t simdgroups[kMostSimdgroups], order[kLanes];
  order_indices(simdgroups, launch.simdgroup_count);
  for (uint32_t i = 0; i < launch.simdgroup_count; ++i) {
    uint32_t count = lanes_of(simdgroups[i]).count;
    order_indices(order, count);
    launch.interval = launch.simdgroups[simdgroups[i]].synchronised;
    for (uint32_t lane = 0; lane < count; ++lane) {
      place_in_threadgroup(fiber->thread, simdgroups[i] * kLanes + order[lane]);
      fiber->place = &kNowhere;
      fiber->guards = 0;
      run_thread();
    }
  }
}

void run_threadgroup() {
  if (launch.is_plain) {
    run_fiber(&launch.fibers[0]);
    return;
  }
  for (;;) {
    uint32_t order[kMostSimdgroups];
    order_indices(order, launch.simdgroup_count);
    for (uint32_t i = 0; i < launch.simdgroup_count; ++i) {
      run_simdgroup(order[i]);
    }
    uint32_t done = 0;
    for (uint32_t i = 0; i < launch.fiber_count; ++i) {
      done += launch.fibers[i].state == kDone;
    }
    if (done == launch.fiber_count) {
      return;
    }
    resolve_threadgroup_barrier(done);
  }
}

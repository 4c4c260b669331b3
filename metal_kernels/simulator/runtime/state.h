// What the files of the runtime share: the state of the one launch that runs.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "launch.h"

constexpr uint32_t kLanes = 32;
constexpr uint32_t kMostThreads = 1024;
constexpr uint32_t kMostSimdgroups = kMostThreads / kLanes;
constexpr uint32_t kNone = UINT32_MAX;
// The widest scalars and vectors: elements are not larger.
constexpr uint32_t kLargestElement = 16;

enum FiberState { kReady, kWaitsForSimd, kWaitsForSimdgroup, kWaitsForThreadgroup, kDone };

using Place = msl_site;

// A thread of the threadgroup that runs.
struct Fiber {
  void* stack_pointer;
  FiberState state;
  msl_op* operation;  // while it waits for its SIMD-group's lanes
  Place place;        // where it waits, or was last seen
  Place simd_place;   // of the SIMD function that is called next, if the user's text tells
  unsigned flags;     // mem_flags of the barrier where it waits
  msl_thread thread;
};

// Memory that barriers order by their flags.
enum Space { kDeviceMemory, kThreadgroupMemory, kSpaces };

// The time counts the synchronisations of a launch: what happens between two of them is not
// ordered. Threadgroups run one after another, so all that happens in one is later than all
// that happened in those before it.
struct Access {
  uint64_t time;    // 0 if there was none
  uint32_t thread;  // index in the threadgroup
  uint32_t line : 31;
  uint32_t is_atomic : 1;
};

// What is remembered of an element. Three loads tell whether a later store races with any:
// whichever thread stores, one of them is the last load that counts for it, and what orders
// that load orders all before it.
struct Shadow {
  Access store;
  Access load;                  // the last one
  Access same_simdgroup_load;   // the last one by another thread of that SIMD-group
  Access other_simdgroup_load;  // the last one by another SIMD-group
};

// A buffer while it is watched.
struct Watched {
  msl_buffer* buffer;
  Space space;
  uint32_t element_shift;  // elements are 2^shift bytes
  uint64_t elements;
  Shadow* shadows;       // per element, of a buffer that is written
  uint64_t* load_times;  // per element, of one that is only read
  uint64_t* loaded_in;   // per 32-byte sector: `synchronised` of the SIMD-group that was last
  uint64_t* stored_in;
};

// When a SIMD-group was last synchronised.
struct SimdgroupTimes {
  uint64_t synchronised;      // in any way; no other SIMD-group has the same time
  uint64_t barrier[kSpaces];  // by a simdgroup_barrier, or the start
};

struct Launch {
  msl_entry entry;
  void** arguments;
  const msl_site* sites;
  msl_config config;
  msl_result* result;
  msl_finding* findings;
  uint32_t max_findings;

  Watched* watched;
  uint32_t watched_count;

  Fiber* fibers;
  uint32_t fiber_count;  // of this threadgroup
  uint32_t simdgroup_count;
  Fiber* current;  // the thread that runs, null in the scheduler
  uint32_t threadgroup_position[3];

  uint64_t now;
  uint64_t threadgroup_start;
  uint64_t barrier[kSpaces];  // the last threadgroup_barrier, or the start
  SimdgroupTimes simdgroups[kMostSimdgroups];

  uint64_t random_state;
};

// hidden: found without a detour through tables of the library
extern Launch launch __attribute__((visibility("hidden")));

// Why a launch does not run to its end.
enum Escape { kFault = 1, kTimeLimit, kWildAccess, kNoMemory };

// fiber.cpp
bool prepare_stacks(uint32_t stack_bytes);
bool is_stack_guard(uint64_t address);
void start_fiber(uint32_t index);
void run_fiber(Fiber* fiber);
void yield_to_scheduler();

// schedule.cpp
void run_threadgroup();
uint32_t random_number();
void shuffle(uint32_t* items, uint32_t count);

// findings.cpp
struct Conflict {
  uint32_t thread = kNone;
  int line = 0;
};
void report(msl_kind kind, Place place, const char* buffer, int64_t offset, const char* message,
            Conflict conflict = {});

// memory.cpp
bool watch(msl_buffer* buffers, uint32_t count);
void unwatch();
void poison_threadgroup_memory();
void report_unwritten_outputs();
bool holds(const msl_buffer* buffer, uint64_t address, uint64_t size);
Watched* find_buffer(uint64_t address);
msl_buffer* nearest_buffer(uint64_t address, int64_t* offset);

// history.cpp
void forget_accesses();
bool is_written(const Watched& watched, const Shadow& shadow);

// escape.cpp
uint32_t run_guarded(void (*run)());
[[noreturn]] void leave_launch(Escape reason);

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
constexpr Place kNowhere = {0, 0, nullptr};

// An array of a thread, with a redzone on both sides, of a function that has not returned.
struct Guard {
  uint64_t address;
  uint32_t size;
};
constexpr uint32_t kMostGuards = 32;

// A thread of the threadgroup that runs.
struct Fiber {
  void* stack_pointer;
  FiberState state;
  msl_op* operation;  // while it waits for its SIMD-group's lanes
  const Place* place;  // where it waits, or was last seen
  Place own_place;     // behind `place` where that is not of the table of sites
  Place simd_place;    // of the SIMD function that is called next, if the user's text tells
  unsigned flags;     // mem_flags of the barrier where it waits
  uint32_t atomics;   // how many operations it made
  uint32_t guards;    // how many arrays are guarded; the first are known
  Guard guarded[kMostGuards];
  msl_thread thread;
};

// Memory that barriers order by their flags.
enum Space { kDeviceMemory, kThreadgroupMemory, kSpaces };

// The time counts the synchronisations of a launch: what happens between two of them is not
// ordered. Threadgroups run one after another, so all that happens in one is later than all
// that happened in those before it.
struct Access {
  uint32_t time;         // 0 if there was none
  uint32_t thread : 10;  // index in the threadgroup
  uint32_t line : 21;
  uint32_t is_atomic : 1;
};
static_assert(sizeof(Access) == 8 && kMostThreads <= 1 << 10, "there is one for every element");
constexpr int kMostLines = (1 << 21) - 1;

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
  uint64_t base;
  uint64_t size;
  msl_buffer* buffer;
  Space space;
  uint32_t element_shift;  // elements are 2^shift bytes
  uint64_t elements;
  Shadow* shadows;       // per element, of a buffer that is written
  uint32_t* load_times;  // per element, of one that is only read
  uint32_t* loaded_in;   // per 32-byte sector: `synchronised` of the SIMD-group that was last
  uint32_t* stored_in;
  uint32_t* map;
};

// When a SIMD-group was last synchronised.
struct SimdgroupTimes {
  uint32_t synchronised;      // in any way; no other SIMD-group has the same time
  uint32_t barrier[kSpaces];  // by a simdgroup_barrier, or the start
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
  uint32_t threadgroup_size[3];
  bool is_plain;  // no thread waits for another: they run one after another on one stack

  uint32_t now;
  uint32_t map_row;   // of the threadgroup in the maps of buffers
  uint32_t interval;  // when the SIMD-group that runs was last synchronised
  uint32_t threadgroup_start;
  uint32_t barrier[kSpaces];  // the last threadgroup_barrier, or the start
  SimdgroupTimes simdgroups[kMostSimdgroups];

  uint64_t random_state;
};

// hidden: found without a detour through tables of the library
extern Launch launch __attribute__((visibility("hidden")));

// Why a launch does not run to its end.
enum Escape { kFault = 1, kTimeLimit, kWildAccess, kNoReturn, kNoMemory };

// fiber.cpp
bool prepare_stacks(uint32_t stack_bytes);
bool is_stack_guard(uint64_t address);
bool is_on_stack(uint64_t address);
void start_fiber(Fiber* fiber);
void run_fiber(Fiber* fiber);
void yield_to_scheduler();

// launch.cpp
void run_threadgroups(uint64_t first, uint64_t last);
void place_in_grid(msl_thread& thread);
void place_in_threadgroup(msl_thread& thread, uint32_t index);

// schedule.cpp
void run_threadgroup();
void run_plain_threads();
void run_thread();
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
inline bool holds(const msl_buffer* buffer, uint64_t address, uint64_t size) {
  uint64_t offset = address - (uint64_t)buffer->base;
  return offset < buffer->size && size <= buffer->size - offset;
}
Watched* find_buffer(uint64_t address);
msl_buffer* nearest_buffer(uint64_t address, int64_t* offset);

// history.cpp
void forget_accesses();
inline bool is_written(const Watched& watched, const Shadow& shadow) {
  bool was_stored = watched.space == kThreadgroupMemory
                        ? shadow.store.time >= launch.threadgroup_start
                        : shadow.store.time != 0;
  return watched.buffer->initialised || was_stored;
}

// log.cpp
void forget_log();
bool is_traced();  // the thread that runs is the one to trace

// workers.cpp
constexpr uint32_t kMostWorkers = 16;
void start_clock();
bool is_worth_sharing(uint64_t done, uint64_t count);
bool run_shared(uint64_t first, uint64_t last);  // false if one process has to run all of it
void stop_workers();

// escape.cpp
uint32_t run_guarded(void (*run)());
uint32_t run_escaping(void (*run)());
[[noreturn]] void leave_launch(Escape reason);

// What the files of the runtime share: the state of the one launch that runs.
#pragma once
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>

#include "launch.h"

constexpr uint32_t kLanes = 32;
constexpr uint32_t kMostThreads = 1024;
constexpr uint32_t kMostSimdgroups = kMostThreads / kLanes;
constexpr uint32_t kNone = UINT32_MAX;

enum FiberState { kReady, kWaitsForSimd, kWaitsForSimdgroup, kWaitsForThreadgroup, kDone };

struct Place {
  const char* file;
  int line;
  int column;
};

// A thread of the threadgroup that runs.
struct Fiber {
  void* stack_pointer;
  FiberState state;
  msl_op* operation;  // while it waits for its SIMD-group's lanes
  Place place;        // where it waits
  unsigned flags;     // mem_flags of the barrier where it waits
  msl_thread thread;
};

// The last accesses of one element. A SIMD-group or thread of kNone stands for several.
struct Access {
  uint32_t threadgroup;  // number + 1; 0 if there was none
  uint32_t thread;       // index in the threadgroup
  uint32_t epoch;        // of the barriers that order this memory
  uint32_t simdgroup;
  uint32_t simdgroup_barriers;  // that the SIMD-group had passed
  uint32_t phase;               // synchronisations of any kind that it had passed
  uint32_t site;
};

struct Shadow {
  Access write;
  Access read;
  bool initialised;
  bool written_atomically;
  bool loaded;  // at any time in the launch
  bool stored;
};

// A buffer while it is watched.
struct Watched {
  msl_buffer* buffer;
  Shadow* shadows;  // one per element; null for constants
  uint64_t elements;
  uint32_t* loaded_phases;  // per 32-byte sector: the phase in which it was last counted
  uint32_t* stored_phases;
};

// 32-bit epochs and phases do not wrap: a launch that synchronised so often would take hours.
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
  uint32_t threadgroup;
  uint32_t threadgroup_position[3];

  uint32_t last_epoch;
  uint32_t threadgroup_epoch;  // barriers that order threadgroup memory
  uint32_t device_epoch;       // barriers that order device memory
  uint32_t last_phase;
  uint32_t simdgroup_barriers[kMostSimdgroups];
  uint32_t simdgroup_phases[kMostSimdgroups];

  uint64_t random_state;
  sigjmp_buf escape;  // out of a thread that cannot go on
};

extern Launch launch;

// Reasons to leave a thread by `escape`.
enum Escape { kFault = 1, kTimeLimit, kWildAccess };

// fiber.cpp
bool prepare_stacks(uint32_t stack_bytes);
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
void forget_threadgroup_memory();
void report_unwritten_outputs();
Watched* find_buffer(uint64_t address, uint32_t hint);
msl_buffer* nearest_buffer(uint64_t address, int64_t* offset);

// history.cpp
void forget_pending_store();

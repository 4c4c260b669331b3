// The runtime as Python calls it (../native.py mirrors these structures with ctypes).
#pragma once
#include <stdint.h>

#include "../include/msl_runtime.h"

// ../native.py gives these their names.
enum msl_kind {
  MSL_OUT_OF_BOUNDS,
  MSL_WRITE_TO_INPUT,
  MSL_UNINITIALISED_READ,
  MSL_UNINITIALISED_LOCAL,  // a private variable
  MSL_UNWRITTEN_OUTPUT,
  MSL_RACE_READ_AFTER_WRITE,
  MSL_RACE_WRITE_AFTER_WRITE,
  MSL_RACE_WRITE_AFTER_READ,
  MSL_RACE_SAME_VALUE,  // two threads store the same value: harmless on a GPU
  MSL_SIMD_LOCKSTEP,    // ordered by a SIMD function only, no barrier: relies on lockstep
  MSL_BARRIER_DIVERGENCE,
  MSL_BARRIER_AFTER_EXIT,
  MSL_SIMDGROUP_BARRIER_DIVERGENCE,
  MSL_SIMD_PARTIAL,    // some lanes have returned
  MSL_SIMD_DIVERGENT,  // some lanes wait elsewhere
  MSL_BAD_SHUFFLE,
  MSL_LOCAL_OUT_OF_BOUNDS,  // of an array of a thread
  MSL_MISALIGNED,
  MSL_INDEX_WRAP,  // an index of 32 bits that does not fit
  MSL_HALF_OVERFLOW,
  MSL_NAN_MADE,
  MSL_NAN_COMPARED,
  MSL_FLOAT_TO_INT,  // of what the integer cannot hold
  MSL_UNDEFINED_BEHAVIOUR,
  MSL_WILD_POINTER,
  MSL_MEMORY_FAULT,
  MSL_TIMEOUT,
  MSL_THREADGROUP_MEMORY,  // more than 32 KB
  MSL_KINDS,
};

enum msl_buffer_kind { MSL_INPUT, MSL_OUTPUT, MSL_THREADGROUP, MSL_CONSTANT };
enum msl_order { MSL_FORWARD, MSL_REVERSE, MSL_RANDOM };

constexpr uint32_t kMapRows = 64;
constexpr uint32_t kMapColumns = 256;

struct msl_site {  // where in the kernel's text an access stands
  int32_t line;
  int32_t column;
  const char* file;
};

struct msl_traffic {           // of loads, or of stores
  uint64_t count;              // accesses by single lanes
  uint64_t bytes;              // what the lanes asked for
  uint64_t sector_bytes;       // 32-byte sectors, once per SIMD-group between synchronisations
  uint64_t threadgroup_bytes;  // distinct bytes, once per threadgroup: a perfect cache in each
  uint64_t unique_bytes;       // distinct bytes of the whole launch: the least possible
};

struct msl_buffer {
  uint8_t* base;
  uint64_t size;
  uint32_t item_size;  // bytes of an element: the granularity of races and traffic
  uint32_t kind;       // msl_buffer_kind
  uint32_t initialised;
  uint32_t padding;
  const char* name;
  msl_traffic loads;  // the rest is filled in by the run
  msl_traffic stores;
  uint64_t unwritten_bytes;  // of an output
  // Bytes moved, where wanted: loads and then stores, for each a row for every threadgroup (or
  // some that follow one another) and a column for every part of the buffer.
  uint32_t* map;
};

struct msl_config {
  uint32_t grid[3];
  uint32_t threadgroup[3];
  uint32_t order;            // msl_order
  uint32_t seed;             // of the random order
  uint32_t reduce_order;     // __msl_reduce_order
  uint32_t yield_at_memory;  // random order: threads may also switch at loads and stores
  uint32_t flush_denormals;
  uint32_t timeout_ms;
  uint32_t stack_bytes;  // of a thread
  uint32_t waits;        // whether a thread may have to wait for others
  uint32_t checked;      // whether accesses are watched
  uint32_t traces;       // whether to tell of the steps of the thread at `traced` in the grid
  uint32_t debugs;       // whether to call msl_thread_begins before it runs
  uint32_t traced[3];
  uint32_t workers;      // processes, at most, that share the threadgroups of a long launch
};

struct msl_finding {
  int32_t kind;  // msl_kind
  int32_t line;
  int32_t column;
  int32_t other_line;  // of the access this one conflicts with; 0 if none
  uint32_t threadgroup[3];
  uint32_t thread;        // index in the threadgroup; UINT32_MAX if none
  uint32_t other_thread;  // index in its threadgroup; UINT32_MAX if none
  uint32_t padding;
  uint64_t count;  // how often
  int64_t offset;  // bytes into the buffer
  char file[64];
  char buffer[48];
  char message[160];
};

struct msl_result {
  uint32_t findings;
  uint32_t stopped;  // 0 ran to the end; otherwise a finding says why not
  uint32_t depends;  // 1: several workers shared it, and it has to be run again by one
  uint32_t padding;
  uint64_t threads;
  uint64_t threadgroups;
  uint64_t barriers;
  uint64_t simd_operations;  // one per lane
  uint64_t atomics;
  uint64_t threadgroup_memory;  // bytes
};

extern "C" {
typedef void (*msl_entry)(void** arguments, const msl_thread* thread);

// Runs one launch. `sites` belongs to the instrumented kernel. Returns result->stopped.
int msl_run(msl_entry entry, void** arguments, msl_buffer* buffers, uint32_t buffer_count,
            const msl_site* sites, const msl_config* config, msl_result* result,
            msl_finding* findings, uint32_t max_findings);

// The sizes of the structures above and the number of kinds, which Python compares with its own
// when it loads the library: traffic, buffer, config, finding, result, MSL_KINDS.
extern const uint32_t msl_layout[6];

// What kernels logged in the last launch, and the steps of a thread: see runtime/log.cpp.
const char* msl_log_text(uint64_t* size);

// Nothing but a place for a debugger's breakpoint.
void msl_thread_begins();

// Memory with redzones on both sides, filled with 0xFF. `block` is what msl_free wants.
void* msl_allocate(uint64_t size, void** block, uint64_t* block_size);
void msl_free(void* block, uint64_t block_size);
}

// What a compiled kernel and the simulator's runtime know of each other. Plain types only:
// this is read both by kernels, which see no system headers, and by the runtime.
#pragma once

// One lane's part in a SIMD-group function. The runtime gathers the operations of all
// lanes that wait at the same place and calls `resolve` once for them.
struct msl_op {
  void (*resolve)(msl_op** lanes, unsigned active);  // 32 entries, null where not active
  const void* in;
  const void* fill;  // second operand of shuffle_and_fill
  void* out;
  unsigned argument;  // lane or delta
  int kind;           // different functions on one source line must not be mixed up
  const char* file;
  int line;
  int column;
};

// The position of a thread, as Metal's thread attributes want it.
struct msl_thread {
  unsigned position_in_grid[3];
  unsigned position_in_threadgroup[3];
  unsigned threadgroup_position[3];
  unsigned threads_per_threadgroup[3];           // of this threadgroup; fewer at the grid's edge
  unsigned dispatch_threads_per_threadgroup[3];  // as launched
  unsigned threadgroups_per_grid[3];
  unsigned threads_per_grid[3];
  unsigned index_in_threadgroup;
  unsigned lane;
  unsigned simdgroup;
  unsigned simdgroups;
  unsigned dispatch_simdgroups;
};

enum msl_atomic_kind { MSL_ATOMIC_LOAD, MSL_ATOMIC_STORE, MSL_ATOMIC_CHANGE };

#ifdef __clang__
#define MSL_CONVERGENT __attribute__((convergent))
#else
#define MSL_CONVERGENT
#endif

extern "C" {
MSL_CONVERGENT void __msl_collective(msl_op* op);
MSL_CONVERGENT void __msl_threadgroup_barrier(unsigned flags, const char* file, int line,
                                              int column);
MSL_CONVERGENT void __msl_simdgroup_barrier(unsigned flags, const char* file, int line, int column);
void __msl_atomic(void* address, unsigned size, int kind, const char* file, int line, int column);
void __msl_bad_shuffle(msl_op* op, int source_lane);
unsigned __msl_lane();
int __msl_reduce_order();  // 0 ascending butterfly, 1 descending butterfly, 2 left to right

// Calls that instrument.py puts into the kernel: before every load and store, and after
// every store. The lowest eight bits of `kind` are the address space of LLVM, 1 device,
// 2 constant, 3 threadgroup, the others the alignment that the access relies on, if any.
// __msl_place comes before a SIMD function: where the user's text calls it, which a function
// of MLX's headers in between does not know.
void __msl_load(void* address, unsigned size, unsigned site, unsigned kind);
void __msl_store(void* address, unsigned size, unsigned site, unsigned kind);
void __msl_stored(void* address, unsigned size, unsigned site, unsigned space);
void __msl_place(unsigned site);
// What the kernel logs, and the steps of a thread that is traced: what it stored in a private
// variable, or moved to or from memory. `type` is a letter, and above it how many of them.
void __msl_log(const char* format, ...);
void __msl_traced(const void* pointer, const void* variable, unsigned size, unsigned type,
                  unsigned site, const char* name);
void __msl_traced_memory(const void* pointer, unsigned type, unsigned site, unsigned is_store);
// Private variables and arithmetic. __msl_guard: an array with a redzone on both sides, until
// __msl_unguard, where its function returns; __msl_private: an access by a pointer that may
// point into one.
void __msl_guard(void* array, unsigned size);
void __msl_unguard(unsigned count);
void __msl_private(void* address, unsigned size, unsigned site);
void __msl_uninitialised_local(unsigned site);
void* __msl_no_heap(unsigned long size);
void __msl_half_overflow(unsigned site);
void __msl_nan_made(unsigned site);
void __msl_nan_compared(unsigned site);
void __msl_index_wrap(unsigned a, unsigned b, unsigned site);
extern unsigned char __msl_written[1 << 16];  // the record of a pointer that was not set: all is
extern volatile unsigned __msl_loop_site;  // of the loop that went round last
}

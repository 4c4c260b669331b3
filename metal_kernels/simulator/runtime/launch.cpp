// One launch from beginning to end.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "state.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

constexpr uint64_t kMostThreadgroupMemory = 32768;

Launch launch;

extern "C" const uint32_t msl_layout[6] = {sizeof(msl_traffic), sizeof(msl_buffer),
                                           sizeof(msl_config),  sizeof(msl_finding),
                                           sizeof(msl_result),  MSL_KINDS};

#if defined(__x86_64__)
constexpr unsigned kFlushToZero = 0x8040;
static uint64_t float_mode() { return _mm_getcsr(); }
static void set_float_mode(uint64_t mode) { _mm_setcsr((unsigned)mode); }
#else
constexpr uint64_t kFlushToZero = 1ull << 24;
static uint64_t float_mode() {
  uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
static void set_float_mode(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#endif

struct Grid {
  uint32_t threadgroup[3];  // threads
  uint32_t threadgroups[3];
  uint64_t count;
};

static Grid grid;
static uint32_t* threadgroup_order;  // null for the natural one

static void divide(const msl_config& config) {
  grid.count = 1;
  for (int d = 0; d < 3; ++d) {
    uint32_t wanted = config.threadgroup[d];
    grid.threadgroup[d] = wanted < config.grid[d] ? wanted : config.grid[d];
    grid.threadgroups[d] =
        grid.threadgroup[d] ? (config.grid[d] + grid.threadgroup[d] - 1) / grid.threadgroup[d] : 0;
    grid.count *= grid.threadgroups[d];
  }
}

// What is the same for all threads of the threadgroup.
void place_in_grid(msl_thread& thread) {
  uint32_t dispatched = 1;
  for (int d = 0; d < 3; ++d) {
    thread.threadgroup_position[d] = launch.threadgroup_position[d];
    thread.threads_per_threadgroup[d] = launch.threadgroup_size[d];
    thread.dispatch_threads_per_threadgroup[d] = grid.threadgroup[d];
    thread.threadgroups_per_grid[d] = grid.threadgroups[d];
    thread.threads_per_grid[d] = launch.config.grid[d];
    dispatched *= grid.threadgroup[d];
  }
  thread.simdgroups = launch.simdgroup_count;
  thread.dispatch_simdgroups = (dispatched + kLanes - 1) / kLanes;
}

void place_in_threadgroup(msl_thread& thread, uint32_t index) {
  const uint32_t* size = launch.threadgroup_size;
  uint32_t* position = thread.position_in_threadgroup;
  position[0] = index < size[0] ? index : index % size[0];
  position[1] = index < size[0] ? 0 : index / size[0] % size[1];
  position[2] = index < size[0] ? 0 : index / size[0] / size[1];
  for (int d = 0; d < 3; ++d) {
    thread.position_in_grid[d] = launch.threadgroup_position[d] * grid.threadgroup[d] + position[d];
  }
  thread.index_in_threadgroup = index;
  thread.lane = index % kLanes;
  thread.simdgroup = index / kLanes;
}

static void start_threadgroup(uint64_t number) {
  bool has_row = grid.count <= kMapRows;
  launch.map_row = (uint32_t)(has_row ? number : number * kMapRows / grid.count);
  launch.threadgroup_position[0] = (uint32_t)(number % grid.threadgroups[0]);
  launch.threadgroup_position[1] = (uint32_t)(number / grid.threadgroups[0] % grid.threadgroups[1]);
  launch.threadgroup_position[2] = (uint32_t)(number / grid.threadgroups[0] / grid.threadgroups[1]);
  uint32_t* size = launch.threadgroup_size;
  for (int d = 0; d < 3; ++d) {
    uint32_t rest = launch.config.grid[d] - launch.threadgroup_position[d] * grid.threadgroup[d];
    size[d] = rest < grid.threadgroup[d] ? rest : grid.threadgroup[d];
  }
  launch.fiber_count = size[0] * size[1] * size[2];
  launch.simdgroup_count = (launch.fiber_count + kLanes - 1) / kLanes;
  launch.threadgroup_start = ++launch.now;
  for (int space = 0; space < kSpaces; ++space) {
    launch.barrier[space] = launch.threadgroup_start;
  }
  for (uint32_t i = 0; i < launch.simdgroup_count; ++i) {
    launch.simdgroups[i] = {};
    launch.simdgroups[i].synchronised = ++launch.now;
  }
  launch.result->threadgroups++;
  poison_threadgroup_memory();
  uint32_t stacks = launch.is_plain ? 1 : launch.fiber_count;
  for (uint32_t i = 0; i < stacks; ++i) {
    start_fiber(&launch.fibers[i]);
    place_in_grid(launch.fibers[i].thread);
    place_in_threadgroup(launch.fibers[i].thread, i);
  }
}

// The order of the threadgroups if it is random; the caller frees it.
static uint32_t* random_order() {
  if (launch.config.order != MSL_RANDOM) {
    return nullptr;
  }
  uint32_t* order = (uint32_t*)malloc((grid.count + 1) * sizeof(uint32_t));
  if (order) {
    for (uint64_t i = 0; i < grid.count; ++i) {
      order[i] = (uint32_t)i;
    }
    shuffle(order, (uint32_t)grid.count);
  }
  return order;
}

void run_threadgroups(uint64_t first, uint64_t last) {
  bool reverse = launch.config.order == MSL_REVERSE;
  for (uint64_t i = first; i < last; ++i) {
    uint64_t number = threadgroup_order ? threadgroup_order[i] : reverse ? grid.count - 1 - i : i;
    start_threadgroup(number);
    run_threadgroup();
  }
}

static void run_grid() {
  start_clock();
  for (uint64_t i = 0; i < grid.count; ++i) {
    if (is_worth_sharing(i, grid.count)) {
      launch.result->depends = !run_shared(i, grid.count);
      return;
    }
    run_threadgroups(i, i + 1);
  }
}

static void report_threadgroup_memory() {
  uint64_t bytes = launch.result->threadgroup_memory;
  if (bytes > kMostThreadgroupMemory) {
    char message[160];
    snprintf(message, sizeof message, "%llu bytes of threadgroup memory; Apple GPUs have %llu",
             (unsigned long long)bytes, (unsigned long long)kMostThreadgroupMemory);
    report(MSL_THREADGROUP_MEMORY, {}, "", 0, message);
  }
}

extern "C" int msl_run(msl_entry entry, void** arguments, msl_buffer* buffers,
                       uint32_t buffer_count, const msl_site* sites, const msl_config* config,
                       msl_result* result, msl_finding* findings, uint32_t max_findings) {
  static Fiber* fibers = nullptr;
  if (!fibers) {
    fibers = (Fiber*)calloc(kMostThreads, sizeof(Fiber));
  }
  memset(&launch, 0, sizeof launch);
  memset(__msl_written, 1, sizeof __msl_written);
  forget_log();
  memset(result, 0, sizeof *result);
  launch.entry = entry;
  launch.arguments = arguments;
  launch.sites = sites;
  launch.config = *config;
  launch.result = result;
  launch.findings = findings;
  launch.max_findings = max_findings;
  launch.fibers = fibers;
  launch.is_plain = !config->waits && !(config->yield_at_memory && config->order == MSL_RANDOM);
  launch.random_state = 0x9e3779b97f4a7c15ull ^ ((uint64_t)config->seed << 17) ^ 1;
  for (int i = 0; i < 8; ++i) {
    random_number();
  }
  if (!watch(buffers, buffer_count) || !fibers || !prepare_stacks(config->stack_bytes)) {
    unwatch();
    report(MSL_MEMORY_FAULT, {}, "", 0, "the simulator has not enough memory for this launch");
    result->stopped = kNoMemory;
    return (int)result->stopped;
  }
  forget_accesses();
  divide(*config);
  result->threads = (uint64_t)config->grid[0] * config->grid[1] * config->grid[2];
  report_threadgroup_memory();
  threadgroup_order = random_order();

  uint64_t mode = float_mode();
  if (config->flush_denormals) {
    set_float_mode(mode | kFlushToZero);
  }
  result->stopped = run_guarded(run_grid);
  set_float_mode(mode);
  launch.current = nullptr;
  stop_workers();

  if (!result->stopped && !result->depends && config->checked) {
    report_unwritten_outputs();
  }
  free(threadgroup_order);
  unwatch();
  return (int)result->stopped;
}

// One launch from beginning to end.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include "state.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

constexpr uint64_t kMostThreadgroupMemory = 32768;

Launch launch;

static volatile sig_atomic_t is_running;
static uint64_t fault_address;

// ---- denormal numbers

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

// ---- faults and the time limit

static void on_signal(int number, siginfo_t* info, void*) {
  if (!is_running) {
    signal(number, SIG_DFL);
    raise(number);
    return;
  }
  fault_address = (uint64_t)info->si_addr;
  siglongjmp(launch.escape, number == SIGALRM ? kTimeLimit : kFault);
}

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGALRM};
constexpr int kSignalCount = sizeof kSignals / sizeof *kSignals;

struct Handlers {
  struct sigaction actions[kSignalCount];
  stack_t stack;
};

static void set_timer(uint32_t milliseconds) {
  itimerval timer = {};
  timer.it_value.tv_sec = milliseconds / 1000;
  timer.it_value.tv_usec = milliseconds % 1000 * 1000;
  setitimer(ITIMER_REAL, &timer, nullptr);
}

static void install_handlers(Handlers* saved) {
  // a thread that overflows its stack has none left for the handler
  static uint8_t handler_stack[1 << 16];
  stack_t stack = {};
  stack.ss_sp = handler_stack;
  stack.ss_size = sizeof handler_stack;
  sigaltstack(&stack, &saved->stack);
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int i = 0; i < kSignalCount; ++i) {
    sigaction(kSignals[i], &action, &saved->actions[i]);
  }
}

static void restore_handlers(const Handlers* saved) {
  for (int i = 0; i < kSignalCount; ++i) {
    sigaction(kSignals[i], &saved->actions[i], nullptr);
  }
  sigaltstack(&saved->stack, nullptr);
}

static void report_escape(int reason) {
  Place place = launch.current ? launch.current->place : Place{};
  if (reason == kTimeLimit) {
    report(MSL_TIMEOUT, place, "", 0, "the time limit is reached; the place is the last wait");
  } else if (reason == kFault) {
    int64_t offset = 0;
    msl_buffer* buffer = nearest_buffer(fault_address, &offset);
    report(MSL_MEMORY_FAULT, {}, buffer ? buffer->name : "", offset,
           "a fault: an access far outside all buffers, or a stack overflow");
  }
}

// ---- the grid

struct Grid {
  uint32_t threadgroup[3];  // threads
  uint32_t threadgroups[3];
  uint64_t count;
};

static Grid divide(const msl_config& config) {
  Grid grid;
  grid.count = 1;
  for (int d = 0; d < 3; ++d) {
    uint32_t wanted = config.threadgroup[d];
    grid.threadgroup[d] = wanted < config.grid[d] ? wanted : config.grid[d];
    grid.threadgroups[d] =
        grid.threadgroup[d] ? (config.grid[d] + grid.threadgroup[d] - 1) / grid.threadgroup[d] : 0;
    grid.count *= grid.threadgroups[d];
  }
  return grid;
}

static void place_thread(const Grid& grid, uint32_t index, const uint32_t size[3]) {
  msl_thread& thread = launch.fibers[index].thread;
  uint32_t position[3] = {index % size[0], index / size[0] % size[1], index / size[0] / size[1]};
  for (int d = 0; d < 3; ++d) {
    uint32_t group = launch.threadgroup_position[d];
    thread.position_in_threadgroup[d] = position[d];
    thread.threadgroup_position[d] = group;
    thread.position_in_grid[d] = group * grid.threadgroup[d] + position[d];
    thread.threads_per_threadgroup[d] = size[d];
    thread.dispatch_threads_per_threadgroup[d] = grid.threadgroup[d];
    thread.threadgroups_per_grid[d] = grid.threadgroups[d];
    thread.threads_per_grid[d] = launch.config.grid[d];
  }
  uint32_t dispatched = grid.threadgroup[0] * grid.threadgroup[1] * grid.threadgroup[2];
  thread.index_in_threadgroup = index;
  thread.lane = index % kLanes;
  thread.simdgroup = index / kLanes;
  thread.simdgroups = launch.simdgroup_count;
  thread.dispatch_simdgroups = (dispatched + kLanes - 1) / kLanes;
}

static void start_threadgroup(const Grid& grid, uint64_t number) {
  launch.threadgroup = (uint32_t)number;
  launch.threadgroup_position[0] = (uint32_t)(number % grid.threadgroups[0]);
  launch.threadgroup_position[1] = (uint32_t)(number / grid.threadgroups[0] % grid.threadgroups[1]);
  launch.threadgroup_position[2] = (uint32_t)(number / grid.threadgroups[0] / grid.threadgroups[1]);
  uint32_t size[3];
  for (int d = 0; d < 3; ++d) {
    uint32_t rest = launch.config.grid[d] - launch.threadgroup_position[d] * grid.threadgroup[d];
    size[d] = rest < grid.threadgroup[d] ? rest : grid.threadgroup[d];
  }
  launch.fiber_count = size[0] * size[1] * size[2];
  launch.simdgroup_count = (launch.fiber_count + kLanes - 1) / kLanes;
  for (uint32_t i = 0; i < launch.simdgroup_count; ++i) {
    launch.simdgroup_barriers[i] = 0;
    launch.simdgroup_phases[i] = ++launch.last_phase;
  }
  launch.threadgroup_epoch = ++launch.last_epoch;
  launch.device_epoch = ++launch.last_epoch;
  launch.result->threadgroups++;
  forget_threadgroup_memory();
  for (uint32_t i = 0; i < launch.fiber_count; ++i) {
    start_fiber(i);
    place_thread(grid, i, size);
  }
}

static void run_grid(const Grid& grid, const uint32_t* order) {
  for (uint64_t i = 0; i < grid.count; ++i) {
    bool reverse = launch.config.order == MSL_REVERSE;
    uint64_t number = order ? order[i] : reverse ? grid.count - 1 - i : i;
    start_threadgroup(grid, number);
    run_threadgroup();
  }
}

// The order of the threadgroups if it is random; the caller frees it.
static uint32_t* random_order(const Grid& grid) {
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
  memset(result, 0, sizeof *result);
  launch.entry = entry;
  launch.arguments = arguments;
  launch.sites = sites;
  launch.config = *config;
  launch.result = result;
  launch.findings = findings;
  launch.max_findings = max_findings;
  launch.fibers = fibers;
  launch.random_state = 0x9e3779b97f4a7c15ull ^ ((uint64_t)config->seed << 17) ^ 1;
  for (int i = 0; i < 8; ++i) {
    random_number();
  }
  forget_pending_store();
  if (!watch(buffers, buffer_count) || !fibers || !prepare_stacks(config->stack_bytes)) {
    unwatch();
    report(MSL_MEMORY_FAULT, {}, "", 0, "the simulator has not enough memory for this launch");
    result->stopped = kFault;
    return (int)result->stopped;
  }
  Grid grid = divide(*config);
  result->threads = (uint64_t)config->grid[0] * config->grid[1] * config->grid[2];
  report_threadgroup_memory();
  uint32_t* order = random_order(grid);

  Handlers saved;
  install_handlers(&saved);
  set_timer(config->timeout_ms);
  uint64_t mode = float_mode();
  if (config->flush_denormals) {
    set_float_mode(mode | kFlushToZero);
  }
  int reason = sigsetjmp(launch.escape, 1);
  is_running = 1;
  if (reason == 0) {
    run_grid(grid, order);
  } else {
    report_escape(reason);
    result->stopped = (uint32_t)reason;
  }
  is_running = 0;
  launch.current = nullptr;
  set_float_mode(mode);
  set_timer(0);
  restore_handlers(&saved);

  if (!result->stopped) {
    report_unwritten_outputs();
  }
  free(order);
  unwatch();
  return (int)result->stopped;
}

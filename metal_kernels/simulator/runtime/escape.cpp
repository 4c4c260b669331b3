// How a launch ends that cannot go on: faults, the time limit, wild accesses.
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "state.h"

// Stray ones do no harm: by default it is ignored.
constexpr int kTimeLimitSignal = SIGURG;
constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, kTimeLimitSignal};
constexpr int kSignalCount = sizeof kSignals / sizeof *kSignals;

volatile unsigned __msl_loop_site = kNone;

static sigjmp_buf escape;
static volatile sig_atomic_t is_running;
static pthread_t runner;
static uint64_t fault_address;

void leave_launch(Escape reason) { siglongjmp(escape, reason); }

static void on_signal(int number, siginfo_t* info, void*) {
  bool is_ours = is_running && pthread_equal(pthread_self(), runner);
  if (number == kTimeLimitSignal) {
    if (is_ours) {
      leave_launch(kTimeLimit);
    }
    return;
  }
  if (!is_ours) {
    signal(number, SIG_DFL);
    raise(number);
    return;
  }
  fault_address = (uint64_t)info->si_addr;
  leave_launch(kFault);
}

struct Handlers {
  struct sigaction actions[kSignalCount];
  stack_t stack;
};

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

// The time limit is a thread of its own: timers of the process belong to the user, and their
// signals may go to any thread.
struct Watchdog {
  pthread_t thread;
  bool is_started;
  int pipe[2];  // something is written when the launch is over
};

static void* watch_time(void* argument) {
  const Watchdog& watchdog = *(const Watchdog*)argument;
  pollfd over = {watchdog.pipe[0], POLLIN, 0};
  if (poll(&over, 1, (int)launch.config.timeout_ms) == 0) {
    pthread_kill(runner, kTimeLimitSignal);
  }
  return nullptr;
}

static void start_watchdog(Watchdog* watchdog) {
  watchdog->is_started = false;
  if (!launch.config.timeout_ms || pipe(watchdog->pipe) != 0) {
    return;
  }
  // signals of the process are for its other threads
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  watchdog->is_started = pthread_create(&watchdog->thread, nullptr, watch_time, watchdog) == 0;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!watchdog->is_started) {
    close(watchdog->pipe[0]);
    close(watchdog->pipe[1]);
  }
}

static void stop_watchdog(Watchdog* watchdog) {
  if (watchdog->is_started) {
    // to close it would not do: a process forked meanwhile may hold the other end
    (void)!write(watchdog->pipe[1], "", 1);
    pthread_join(watchdog->thread, nullptr);
    close(watchdog->pipe[0]);
    close(watchdog->pipe[1]);
  }
}

static void report_fault(Place place) {
  char message[160];
  if (launch.current && is_on_stack(fault_address) &&
      is_stack_guard(fault_address)) {
    snprintf(message, sizeof message,
             "a thread's private variables and calls take more than %u bytes of stack",
             launch.config.stack_bytes);
    report(MSL_MEMORY_FAULT, place, "", 0, message);
    return;
  }
  snprintf(message, sizeof message, "a fault at address 0x%llx; the place is where it was last seen",
           (unsigned long long)fault_address);
  report(MSL_MEMORY_FAULT, place, "", 0, message);
}

static void report_escape(int reason) {
  Place place = launch.current ? *launch.current->place : kNowhere;
  if (reason == kTimeLimit && __msl_loop_site != kNone) {
    report(MSL_TIMEOUT, launch.sites[__msl_loop_site], "", 0,
           "the time limit is reached; this loop went round last");
  } else if (reason == kTimeLimit) {
    report(MSL_TIMEOUT, place, "", 0,
           "the time limit is reached; the place is where the thread was last seen");
  } else if (reason == kFault) {
    report_fault(place);
  }
}

uint32_t run_escaping(void (*run)()) {
  int reason = sigsetjmp(escape, 1);
  if (reason == 0) {
    run();
  }
  return (uint32_t)reason;
}

uint32_t run_guarded(void (*run)()) {
  static Handlers saved;
  static Watchdog watchdog;
  runner = pthread_self();
  __msl_loop_site = kNone;
  install_handlers(&saved);
  int reason = sigsetjmp(escape, 1);
  if (reason == 0) {
    is_running = 1;
    start_watchdog(&watchdog);
    run();
  }
  is_running = 0;
  stop_watchdog(&watchdog);
  restore_handlers(&saved);
  if (reason) {
    report_escape(reason);
  }
  return (uint32_t)reason;
}

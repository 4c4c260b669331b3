// Threadgroups of a long launch in several processes, one for each core.
//
// Each process remembers its own accesses and writes to the same buffers. If none of them finds
// anything and no element was stored by one and touched by another, the order of the threadgroups
// made no difference, and counts are added up. Otherwise the launch has to be run again by one.
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "state.h"

// What it costs to begin, and to add up what was done with an element, in nanoseconds.
constexpr uint64_t kBeginning = 20 * 1000 * 1000;
constexpr uint64_t kAddingUp = 40;

// What a process did with an element.
enum Touched : uint8_t {
  kLoaded = 1,       // at any time
  kStored = 2,       // at any time
  kLoadedApart = 4,  // since the processes went apart
  kStoredApart = 8,
};

struct Worker {
  pid_t process;
  uint8_t* block;  // what it tells: a Share, the traffic of every buffer, and Touched per element
  uint64_t block_size;
};

struct Share {
  uint32_t is_complete;
  uint32_t findings;
  msl_result result;
};

static Worker workers[kMostWorkers];
static uint32_t worker_count;
static uint64_t started;
static uint32_t time_apart;

static uint64_t nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

void start_clock() { started = nanoseconds(); }

bool is_worth_sharing(uint64_t done, uint64_t count) {
  uint32_t wanted = launch.config.workers;
  if (wanted < 2 || !done || count - done < wanted || launch.result->findings) {
    return false;
  }
  uint64_t elapsed = nanoseconds() - started;
  uint64_t rest = elapsed / done * (count - done);
  uint64_t elements = 0;
  for (uint32_t i = 0; i < launch.watched_count; ++i) {
    elements += launch.watched[i].elements;
  }
  uint64_t cost = kBeginning + kAddingUp * elements;
  return elapsed > kBeginning / 2 && rest - rest / wanted > cost;
}

void stop_workers() {
  for (uint32_t i = 0; i < worker_count; ++i) {
    if (workers[i].process > 0) {
      kill(workers[i].process, SIGKILL);
      waitpid(workers[i].process, nullptr, 0);
    }
    munmap(workers[i].block, workers[i].block_size);
  }
  worker_count = 0;
}

static msl_traffic* traffic_in(uint8_t* block) { return (msl_traffic*)(block + sizeof(Share)); }

static uint8_t* touched_in(uint8_t* block) {
  return (uint8_t*)(traffic_in(block) + 2 * launch.watched_count);
}

static uint8_t touched(const Watched& watched, uint64_t element) {
  uint32_t load = watched.load_times ? watched.load_times[element]
                                     : watched.shadows[element].load.time;
  uint32_t store = watched.load_times ? 0 : watched.shadows[element].store.time;
  return (uint8_t)((load ? kLoaded : 0) | (store ? kStored : 0) |
                   (load > time_apart ? kLoadedApart : 0) |
                   (store > time_apart ? kStoredApart : 0));
}

static bool is_remembered(const Watched& watched) { return watched.load_times || watched.shadows; }

static uint64_t own_first, own_last;

static void run_own() { run_threadgroups(own_first, own_last); }

[[noreturn]] static void work(Worker& worker, uint64_t first, uint64_t last) {
  Share& share = *(Share*)worker.block;
  launch.result = &share.result;
  for (uint32_t i = 0; i < launch.watched_count; ++i) {
    launch.watched[i].buffer->loads = {};
    launch.watched[i].buffer->stores = {};
  }
  own_first = first;
  own_last = last;
  bool is_complete = !run_escaping(run_own);
  uint8_t* element_touched = touched_in(worker.block);
  for (uint32_t i = 0; i < launch.watched_count; ++i) {
    const Watched& watched = launch.watched[i];
    traffic_in(worker.block)[2 * i] = watched.buffer->loads;
    traffic_in(worker.block)[2 * i + 1] = watched.buffer->stores;
    for (uint64_t e = 0; is_remembered(watched) && e < watched.elements; ++e) {
      *element_touched++ = touched(watched, e);
    }
  }
  share.findings = share.result.findings;
  share.is_complete = is_complete;
  _exit(0);
}

static bool start_worker(uint64_t first, uint64_t last) {
  Worker& worker = workers[worker_count];
  worker.block_size = sizeof(Share) + 2 * launch.watched_count * sizeof(msl_traffic);
  for (uint32_t i = 0; i < launch.watched_count; ++i) {
    worker.block_size += is_remembered(launch.watched[i]) ? launch.watched[i].elements : 0;
  }
  int flags = MAP_SHARED | MAP_ANONYMOUS;
  void* block = mmap(nullptr, worker.block_size, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (block == MAP_FAILED) {
    return false;
  }
  worker.block = (uint8_t*)block;
  worker.process = fork();
  if (worker.process == 0) {
    work(worker, first, last);
  }
  worker_count++;
  return worker.process > 0;
}

static void add(msl_traffic& total, const msl_traffic& part) {
  total.count += part.count;
  total.bytes += part.bytes;
  total.sector_bytes += part.sector_bytes;
  total.threadgroup_bytes += part.threadgroup_bytes;
}

// Adds what a worker did with the elements of a buffer to what is known here. Returns whether the
// order of the two would have made a difference.
static bool join_elements(Watched& watched, const uint8_t* theirs) {
  bool is_shared = watched.buffer->kind != MSL_THREADGROUP;
  bool is_conflict = false;
  for (uint64_t e = 0; e < watched.elements; ++e) {
    uint8_t own = touched(watched, e), other = theirs[e];
    bool clash = (own & kStoredApart && other & (kStoredApart | kLoadedApart)) ||
                 (other & kStoredApart && own & kLoadedApart);
    is_conflict |= is_shared && clash;
    if (watched.load_times) {
      watched.load_times[e] = other & kLoadedApart ? launch.now : watched.load_times[e];
    } else {
      Shadow& shadow = watched.shadows[e];
      shadow.load.time = other & kLoadedApart ? launch.now : shadow.load.time;
      shadow.store.time = other & kStoredApart ? launch.now : shadow.store.time;
    }
  }
  return is_conflict;
}

static void count_unique(const Watched& watched) {
  uint64_t loaded = 0, stored = 0;
  for (uint64_t e = 0; e < watched.elements; ++e) {
    uint8_t what = touched(watched, e);
    loaded += what & kLoaded ? 1 : 0;
    stored += what & kStored ? 1 : 0;
  }
  watched.buffer->loads.unique_bytes = loaded << watched.element_shift;
  watched.buffer->stores.unique_bytes = stored << watched.element_shift;
}

static bool join(Worker& worker) {
  waitpid(worker.process, nullptr, 0);
  worker.process = 0;
  const Share& share = *(const Share*)worker.block;
  if (!share.is_complete || share.findings) {
    return false;
  }
  launch.result->threadgroups += share.result.threadgroups;
  launch.result->barriers += share.result.barriers;
  launch.result->simd_operations += share.result.simd_operations;
  const uint8_t* theirs = touched_in(worker.block);
  launch.now++;
  for (uint32_t i = 0; i < launch.watched_count; ++i) {
    Watched& watched = launch.watched[i];
    add(watched.buffer->loads, traffic_in(worker.block)[2 * i]);
    add(watched.buffer->stores, traffic_in(worker.block)[2 * i + 1]);
    if (is_remembered(watched)) {
      if (join_elements(watched, theirs)) {
        return false;
      }
      theirs += watched.elements;
    }
  }
  return true;
}

bool run_shared(uint64_t first, uint64_t last) {
  uint64_t parts = launch.config.workers < kMostWorkers ? launch.config.workers : kMostWorkers;
  uint64_t part = (last - first + parts - 1) / parts;
  time_apart = launch.now;
  for (uint64_t at = first + part; at < last; at += part) {
    if (!start_worker(at, at + part < last ? at + part : last)) {
      return false;
    }
  }
  run_threadgroups(first, first + part);
  bool is_one = launch.result->findings == 0;
  for (uint32_t i = 0; i < worker_count && is_one; ++i) {
    is_one = join(workers[i]);
  }
  for (uint32_t i = 0; i < launch.watched_count && is_one; ++i) {
    if (is_remembered(launch.watched[i])) {
      count_unique(launch.watched[i]);
    }
  }
  return is_one;
}

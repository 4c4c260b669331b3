// Every load and store: bounds, initialisation, races and traffic.
//
// Races are found from the history of accesses, not from the schedule: two accesses of one
// element, at least one a store, by threads that no barrier with the right memory flags
// orders. Threadgroups are not ordered at all.
#include <stdio.h>
#include <string.h>

#include "state.h"

constexpr uint64_t kSector = 32;
constexpr uint64_t kLongestComparedStore = 64;
// As far as redzones reach: what lands in them harms nothing and the thread may go on.
constexpr int64_t kBufferRedzone = 60000;
constexpr int64_t kVariableRedzone = 64;

enum AddressSpace { kDevice = 1, kConstant = 2, kThreadgroup = 3 };
enum Order { kOrdered, kLockstep, kRace };

// A store over another thread's store: whether the value changes is known only afterwards.
struct PendingStore {
  bool is_set;
  uint32_t size;
  uint8_t old_value[kLongestComparedStore];
  Conflict conflict;
  const char* buffer;
  uint64_t offset;
};
static PendingStore pending;

static uint32_t last_buffer;

void forget_pending_store() { pending.is_set = false; }

static Place place_of(uint32_t site) {
  const msl_site& found = launch.sites[site];
  return {found.file, found.line, found.column};
}

// Returns whether the thread can go on.
static bool report_out_of_bounds(uint64_t address, uint32_t size, bool is_store, uint32_t space,
                                 Place place) {
  int64_t offset = 0;
  msl_buffer* buffer = nearest_buffer(address, &offset);
  if (space == kConstant && (!buffer || offset < -kBufferRedzone || offset > kBufferRedzone)) {
    return true;  // constants that the compiler made
  }
  char message[160];
  snprintf(message, sizeof message, "%s of %u bytes at byte %lld of a buffer of %llu bytes",
           is_store ? "store" : "load", size, (long long)offset,
           (unsigned long long)(buffer ? buffer->size : 0));
  report(buffer ? MSL_OUT_OF_BOUNDS : MSL_WILD_POINTER, place, buffer ? buffer->name : "", offset,
         message);
  if (!buffer) {
    return false;
  }
  bool is_variable = buffer->kind == MSL_THREADGROUP;
  int64_t before = is_variable ? 0 : kBufferRedzone;
  int64_t behind = is_variable ? kVariableRedzone : kBufferRedzone;
  return offset >= -before && offset + (int64_t)size <= (int64_t)buffer->size + behind;
}

static void count_sectors(uint32_t* phases, msl_traffic& traffic, uint64_t offset, uint32_t size) {
  uint32_t phase = launch.simdgroup_phases[launch.current->thread.simdgroup];
  for (uint64_t s = offset / kSector; s <= (offset + size - 1) / kSector; ++s) {
    if (phases[s] != phase) {
      phases[s] = phase;
      traffic.sector_bytes += kSector;
    }
  }
}

// How an earlier access of other threads stands to one that the current thread makes now.
static Order order_of(const Access& earlier, uint32_t epoch, bool is_device) {
  const msl_thread& thread = launch.current->thread;
  if (!earlier.threadgroup) {
    return kOrdered;
  }
  if (is_device && earlier.threadgroup != launch.threadgroup + 1) {
    return kRace;
  }
  if (earlier.epoch != epoch || earlier.thread == thread.index_in_threadgroup) {
    return kOrdered;
  }
  if (earlier.simdgroup != thread.simdgroup) {
    return kRace;
  }
  if (earlier.simdgroup_barriers != launch.simdgroup_barriers[thread.simdgroup]) {
    return kOrdered;
  }
  bool synchronised = earlier.phase != launch.simdgroup_phases[thread.simdgroup];
  return synchronised ? kLockstep : kRace;
}

static Conflict conflict_with(const Access& earlier) {
  return {earlier.thread, earlier.site == kNone ? 0 : launch.sites[earlier.site].line};
}

static const char* elsewhere(const Access& earlier) {
  bool is_other = earlier.threadgroup == kNone || earlier.threadgroup != launch.threadgroup + 1;
  return is_other ? " of another threadgroup" : "";
}

static void check_races(Shadow& shadow, const msl_buffer* buffer, uint64_t offset, bool is_store,
                        uint8_t* address, uint32_t size, Place place) {
  bool is_device = buffer->kind != MSL_THREADGROUP;
  uint32_t epoch = is_device ? launch.device_epoch : launch.threadgroup_epoch;
  unsigned long long byte = offset;
  char message[160];
  Order to_store = shadow.written_atomically ? kOrdered : order_of(shadow.write, epoch, is_device);
  if (to_store == kRace && !is_store) {
    snprintf(message, sizeof message,
             "loads byte %llu that another thread%s stored, no barrier between", byte,
             elsewhere(shadow.write));
    report(MSL_RACE_READ_AFTER_WRITE, place, buffer->name, offset, message,
           conflict_with(shadow.write));
  } else if (to_store == kRace && !pending.is_set && size <= kLongestComparedStore) {
    pending.is_set = true;
    pending.size = size;
    pending.conflict = conflict_with(shadow.write);
    pending.buffer = buffer->name;
    pending.offset = offset;
    memcpy(pending.old_value, address, size);
  }
  Order to_load = is_store ? order_of(shadow.read, epoch, is_device) : kOrdered;
  if (to_load == kRace) {
    snprintf(message, sizeof message,
             "stores byte %llu that another thread%s loads, no barrier between", byte,
             elsewhere(shadow.read));
    report(MSL_RACE_WRITE_AFTER_READ, place, buffer->name, offset, message,
           conflict_with(shadow.read));
  }
  if (to_store == kLockstep || to_load == kLockstep) {
    const Access& earlier = to_store == kLockstep ? shadow.write : shadow.read;
    snprintf(message, sizeof message,
             "%s byte %llu after another lane's %s, with a SIMD function but no barrier between",
             is_store ? "stores" : "loads", byte, to_store == kLockstep ? "store" : "load");
    report(MSL_SIMD_LOCKSTEP, place, buffer->name, offset, message,
           {kNone, conflict_with(earlier).line});
  }
}

static Access access_now(uint32_t epoch, uint32_t site) {
  const msl_thread& thread = launch.current->thread;
  return {launch.threadgroup + 1,
          thread.index_in_threadgroup,
          epoch,
          thread.simdgroup,
          launch.simdgroup_barriers[thread.simdgroup],
          launch.simdgroup_phases[thread.simdgroup],
          site};
}

// Several readers of one epoch are kept as one whose thread, and SIMD-group, is kNone.
static void remember_load(Shadow& shadow, bool is_device, uint32_t epoch, uint32_t site) {
  Access now = access_now(epoch, site);
  Access& last = shadow.read;
  bool same_threadgroup = last.threadgroup == now.threadgroup;
  bool same_epoch = last.threadgroup && last.epoch == epoch && (!is_device || same_threadgroup);
  if (same_epoch && last.thread != now.thread) {
    now.thread = kNone;
    if (last.simdgroup != now.simdgroup) {
      now.simdgroup = kNone;
    }
  }
  if (is_device && last.threadgroup && !same_threadgroup) {
    now.threadgroup = kNone;
  }
  last = now;
}

static void count_distinct(Shadow& shadow, msl_buffer* buffer, bool is_store, uint32_t epoch) {
  uint32_t item = buffer->item_size;
  uint32_t threadgroup = launch.threadgroup + 1;
  if (is_store) {
    buffer->stores.unique_bytes += shadow.stored ? 0 : item;
    buffer->stores.threadgroup_bytes += shadow.write.threadgroup == threadgroup ? 0 : item;
    shadow.stored = true;
    return;
  }
  buffer->loads.unique_bytes += shadow.loaded ? 0 : item;
  bool several = shadow.read.threadgroup == kNone;
  bool counted = several ? shadow.read.epoch == epoch : shadow.read.threadgroup == threadgroup;
  buffer->loads.threadgroup_bytes += counted ? 0 : item;
  shadow.loaded = true;
}

static void access(void* pointer, uint32_t size, bool is_store, bool is_atomic, uint32_t space,
                   uint32_t site, Place place) {
  uint64_t address = (uint64_t)pointer;
  Watched* watched = find_buffer(address, last_buffer);
  if (!watched || address + size > (uint64_t)watched->buffer->base + watched->buffer->size) {
    if (!report_out_of_bounds(address, size, is_store, space, place)) {
      siglongjmp(launch.escape, kWildAccess);
    }
    return;
  }
  last_buffer = (uint32_t)(watched - launch.watched);
  msl_buffer* buffer = watched->buffer;
  uint64_t offset = address - (uint64_t)buffer->base;
  if (is_store && (buffer->kind == MSL_INPUT || buffer->kind == MSL_CONSTANT)) {
    report(MSL_WRITE_TO_INPUT, place, buffer->name, (int64_t)offset,
           "stores to a read-only buffer");
  }
  msl_traffic& traffic = is_store ? buffer->stores : buffer->loads;
  traffic.count++;
  traffic.bytes += size;
  if (!watched->shadows) {
    return;
  }
  count_sectors(is_store ? watched->stored_phases : watched->loaded_phases, traffic, offset, size);
  bool is_device = buffer->kind != MSL_THREADGROUP;
  bool can_race = !is_atomic && (buffer->kind == MSL_OUTPUT || !is_device);
  uint32_t epoch = is_device ? launch.device_epoch : launch.threadgroup_epoch;
  for (uint64_t element = offset / buffer->item_size;
       element <= (offset + size - 1) / buffer->item_size; ++element) {
    Shadow& shadow = watched->shadows[element];
    uint64_t byte = element * buffer->item_size;
    count_distinct(shadow, buffer, is_store, epoch);
    if (!is_store && !shadow.initialised) {
      report(MSL_UNINITIALISED_READ, place, buffer->name, (int64_t)byte,
             "loads memory that nobody has written");
    }
    if (can_race) {
      check_races(shadow, buffer, byte, is_store, (uint8_t*)pointer, size, place);
    }
    if (is_store) {
      shadow.initialised = true;
      shadow.written_atomically = is_atomic;
      shadow.write = access_now(epoch, site);
    } else {
      remember_load(shadow, is_device, epoch, site);
    }
  }
}

static bool yields_at_memory() { return launch.config.yield_at_memory && random_number() % 4 == 0; }

extern "C" void __msl_load(void* address, unsigned size, unsigned site, unsigned space) {
  access(address, size, false, false, space, site, place_of(site));
  if (space != kConstant && yields_at_memory()) {
    yield_to_scheduler();
  }
}

extern "C" void __msl_store(void* address, unsigned size, unsigned site, unsigned space) {
  access(address, size, true, false, space, site, place_of(site));
}

extern "C" void __msl_stored(void* address, unsigned, unsigned site, unsigned) {
  if (pending.is_set) {
    pending.is_set = false;
    bool is_same = memcmp(pending.old_value, address, pending.size) == 0;
    char message[160];
    snprintf(message, sizeof message,
             "stores %sbyte %llu that another thread stored, no barrier between",
             is_same ? "the same value to " : "", (unsigned long long)pending.offset);
    report(is_same ? MSL_RACE_SAME_VALUE : MSL_RACE_WRITE_AFTER_WRITE, place_of(site),
           pending.buffer, (int64_t)pending.offset, message, pending.conflict);
  }
  if (yields_at_memory()) {
    yield_to_scheduler();
  }
}

extern "C" void __msl_atomic(void* address, unsigned size, int is_write, const char* file, int line,
                             int column) {
  if (launch.config.order == MSL_RANDOM && random_number() % 2) {
    yield_to_scheduler();
  }
  launch.result->atomics++;
  access(address, size, is_write != 0, true, kDevice, kNone, {file, line, column});
}

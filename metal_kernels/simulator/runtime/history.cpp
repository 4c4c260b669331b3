// Every load and store: bounds, initialisation, races and traffic.
//
// Races are found from the history of accesses, not from the schedule: two accesses of one
// element, at least one a store, by threads that no barrier with the right memory flags
// orders. Threadgroups are not ordered at all.
#include <stdio.h>
#include <string.h>

#include "state.h"

constexpr uint64_t kSector = 32;
// As far as redzones reach: what lands in them harms nothing and the thread may go on.
constexpr int64_t kBufferRedzone = 60000;
constexpr int64_t kVariableRedzone = 64;

// What instrument.py tells of an access: its address space and its alignment.
constexpr uint32_t kConstantAddressSpace = 2;
constexpr uint32_t kSpaceMask = 0xff;
constexpr uint32_t kAlignmentShift = 8;

// A thread that makes many atomic operations may wait for another one to make its own.
constexpr uint32_t kAtomicsInTurn = 64;

// How an earlier access stands to one that is made now; later values are worse.
enum Order { kOrdered, kLockstep, kRace };

// What an access is, for those that look at its elements.
struct Request {
  Access access;
  uint64_t offset;
  uint32_t size;
};

// Stores over other threads' stores: whether the values change is known only afterwards. A
// store with more elements has more than enough findings.
struct Overwrite {
  const uint8_t* address;
  uint32_t size;
  uint8_t old_value[kLargestElement];
  Access earlier;
  const char* buffer;
  uint64_t offset;
};
constexpr uint32_t kMostOverwrites = 16;
static Overwrite overwrites[kMostOverwrites];
static uint32_t overwrite_count;

// Most accesses of one place in the text are to one buffer.
constexpr uint32_t kRememberedSites = 256;
static Watched* buffer_of_site[kRememberedSites];
static Watched* buffer_of_atomics;

void forget_accesses() {
  overwrite_count = 0;
  buffer_of_atomics = launch.watched;
  for (Watched*& watched : buffer_of_site) {
    watched = launch.watched;
  }
}

static void report_outside(uint64_t address, uint32_t size, bool is_store) {
  Place place = *launch.current->place;
  const char* verb = is_store ? "stores" : "loads";
  char message[160];
  int64_t offset = 0;
  msl_buffer* buffer = nearest_buffer(address, &offset);
  if (!buffer) {
    snprintf(message, sizeof message, "%s %u bytes at address 0x%llx, far from every buffer", verb,
             size, (unsigned long long)address);
    report(MSL_WILD_POINTER, place, "", 0, message);
    leave_launch(kWildAccess);
  }
  snprintf(message, sizeof message, "%s %u bytes at byte %lld of a buffer of %llu bytes", verb,
           size, (long long)offset, (unsigned long long)buffer->size);
  report(MSL_OUT_OF_BOUNDS, place, buffer->name, offset, message);
  bool is_variable = buffer->kind == MSL_THREADGROUP;
  int64_t before = is_variable ? 0 : kBufferRedzone;
  int64_t behind = is_variable ? kVariableRedzone : kBufferRedzone;
  if (offset < -before || offset + (int64_t)size > (int64_t)buffer->size + behind) {
    leave_launch(kWildAccess);
  }
}

// The buffer that holds all of an access; if there is none, which is reported, null.
static Watched* buffer_of(uint64_t address, uint32_t size, bool is_store, Watched*& remembered) {
  if (launch.watched_count && holds(remembered->buffer, address, size)) {
    return remembered;
  }
  Watched* found = find_buffer(address);
  if (found && holds(found->buffer, address, size)) {
    remembered = found;
    return found;
  }
  report_outside(address, size, is_store);
  return nullptr;
}

static inline void count_sector(uint32_t& counted_in, msl_traffic& traffic) {
  if (counted_in != launch.interval) {
    counted_in = launch.interval;
    traffic.sector_bytes += kSector;
  }
}

static inline void count_sectors(uint32_t* counted_in, msl_traffic& traffic,
                                 const Request& request) {
  uint64_t last = (request.offset + request.size - 1) / kSector;
  for (uint64_t s = request.offset / kSector; s <= last; ++s) {
    count_sector(counted_in[s], traffic);
  }
}

static inline void count_distinct(msl_traffic& traffic, uint32_t element_shift, uint32_t last) {
  if (last < launch.threadgroup_start) {
    uint64_t bytes = 1ull << element_shift;
    traffic.threadgroup_bytes += bytes;
    traffic.unique_bytes += last == 0 ? bytes : 0;
  }
}

static inline Order order_of(const Access& earlier, const Access& now, Space space) {
  if (earlier.time == 0 || (earlier.is_atomic && now.is_atomic)) {
    return kOrdered;
  }
  if (earlier.time < launch.threadgroup_start) {
    return space == kDeviceMemory ? kRace : kOrdered;
  }
  if (earlier.time < launch.barrier[space] || earlier.thread == now.thread) {
    return kOrdered;
  }
  if (earlier.thread / kLanes != now.thread / kLanes) {
    return kRace;
  }
  const SimdgroupTimes& times = launch.simdgroups[now.thread / kLanes];
  if (earlier.time < times.barrier[space]) {
    return kOrdered;
  }
  return earlier.time < times.synchronised ? kLockstep : kRace;
}

static inline void remember_load(Shadow& shadow, const Access& now, Space space) {
  Access& last = shadow.load;
  if (last.time < launch.threadgroup_start) {
    shadow.same_simdgroup_load = {};
    shadow.other_simdgroup_load = space == kDeviceMemory ? last : Access{};
  } else if (last.thread / kLanes != now.thread / kLanes) {
    // a load in an earlier threadgroup is never ordered, so it is the one to keep
    Access& other = shadow.other_simdgroup_load;
    if (other.time == 0 || other.time >= launch.threadgroup_start) {
      other = last;
    }
    shadow.same_simdgroup_load = {};
  } else if (last.thread != now.thread) {
    shadow.same_simdgroup_load = last;
  }
  last = now;
}

// `verb` is what this thread does, `other_verb` what the other one did.
static void report_conflict(msl_kind kind, const Access& earlier, const char* buffer,
                            uint64_t offset, const char* verb, const char* other_verb) {
  const char* other = "another thread";
  const char* between = ", no barrier between";
  if (earlier.time < launch.threadgroup_start) {
    other = "a thread of another threadgroup";
    between = "";
  } else if (kind == MSL_SIMD_LOCKSTEP) {
    other = "another lane";
    between = ", with a SIMD function but no barrier between";
  }
  char message[160];
  snprintf(message, sizeof message, "%s byte %llu that %s %s%s", verb, (unsigned long long)offset,
           other, other_verb, between);
  report(kind, *launch.current->place, buffer, (int64_t)offset, message,
         {earlier.thread, (int)earlier.line});
}

static void report_order(msl_kind kind, Order order, const Access& earlier, const Watched& watched,
                         uint64_t element, const char* verb, const char* other_verb) {
  report_conflict(order == kLockstep ? MSL_SIMD_LOCKSTEP : kind, earlier, watched.buffer->name,
                  element << watched.element_shift, verb, other_verb);
}

static void begin_overwrite(const Watched& watched, uint64_t element, const Access& earlier) {
  if (overwrite_count == kMostOverwrites) {
    return;
  }
  uint64_t offset = element << watched.element_shift;
  Overwrite& overwrite = overwrites[overwrite_count++];
  overwrite.address = watched.buffer->base + offset;
  overwrite.size = 1u << watched.element_shift;
  overwrite.earlier = earlier;
  overwrite.buffer = watched.buffer->name;
  overwrite.offset = offset;
  memcpy(overwrite.old_value, overwrite.address, overwrite.size);
}

static void finish_overwrites() {
  for (uint32_t i = 0; i < overwrite_count; ++i) {
    const Overwrite& overwrite = overwrites[i];
    bool is_same = memcmp(overwrite.old_value, overwrite.address, overwrite.size) == 0;
    report_conflict(is_same ? MSL_RACE_SAME_VALUE : MSL_RACE_WRITE_AFTER_WRITE, overwrite.earlier,
                    overwrite.buffer, overwrite.offset,
                    is_same ? "stores the same value to" : "stores", "stored");
  }
  overwrite_count = 0;
}

static void check_loads(const Watched& watched, uint64_t element, const Access& now) {
  const Shadow& shadow = watched.shadows[element];
  const Access* loads[] = {&shadow.load, &shadow.same_simdgroup_load,
                           &shadow.other_simdgroup_load};
  const Access* worst = nullptr;
  Order worst_order = kOrdered;
  for (const Access* load : loads) {
    Order order = order_of(*load, now, watched.space);
    if (order > worst_order) {
      worst_order = order;
      worst = load;
    }
  }
  if (worst) {
    report_order(MSL_RACE_WRITE_AFTER_READ, worst_order, *worst, watched, element, "stores",
                 "loads");
  }
}

static void report_uninitialised(const Watched& watched, uint64_t element) {
  report(MSL_UNINITIALISED_READ, *launch.current->place, watched.buffer->name,
         (int64_t)(element << watched.element_shift), "loads memory that nobody has written");
}

static inline void load_element(const Watched& watched, uint64_t element, const Access& now) {
  Shadow& shadow = watched.shadows[element];
  if (!is_written(watched, shadow)) {
    report_uninitialised(watched, element);
  }
  Order order = order_of(shadow.store, now, watched.space);
  if (order != kOrdered) {
    report_order(MSL_RACE_READ_AFTER_WRITE, order, shadow.store, watched, element, "loads",
                 "stored");
  }
  count_distinct(watched.buffer->loads, watched.element_shift, shadow.load.time);
  remember_load(shadow, now, watched.space);
}

// A thread's atomic store after its own plain one leaves the plain one to be seen: that one
// is what races with others.
static inline void remember_store(Shadow& shadow, const Access& now, Space space) {
  bool hides_plain = now.is_atomic && !shadow.store.is_atomic &&
                     shadow.store.thread == now.thread &&
                     shadow.store.time >= launch.barrier[space];
  shadow.store = now;
  shadow.store.is_atomic = now.is_atomic && !hides_plain;
}

static inline void store_element(const Watched& watched, uint64_t element, const Access& now) {
  Shadow& shadow = watched.shadows[element];
  Order order = order_of(shadow.store, now, watched.space);
  if (order == kRace && !now.is_atomic) {
    begin_overwrite(watched, element, shadow.store);
  } else if (order != kOrdered) {
    report_order(MSL_RACE_WRITE_AFTER_WRITE, order, shadow.store, watched, element, "stores",
                 "stored");
  }
  if (shadow.load.time != 0) {
    check_loads(watched, element, now);
  }
  count_distinct(watched.buffer->stores, watched.element_shift, shadow.store.time);
  remember_store(shadow, now, watched.space);
}

static inline void load_elements(const Watched& watched, const Request& request) {
  uint64_t first = request.offset >> watched.element_shift;
  uint64_t last = (request.offset + request.size - 1) >> watched.element_shift;
  if (watched.shadows) {
    for (uint64_t element = first; element <= last; ++element) {
      load_element(watched, element, request.access);
    }
    return;
  }
  for (uint64_t element = first; element <= last; ++element) {
    count_distinct(watched.buffer->loads, watched.element_shift, watched.load_times[element]);
    watched.load_times[element] = request.access.time;
  }
}

static inline void store_elements(const Watched& watched, const Request& request) {
  uint64_t first = request.offset >> watched.element_shift;
  uint64_t last = (request.offset + request.size - 1) >> watched.element_shift;
  for (uint64_t element = first; element <= last; ++element) {
    store_element(watched, element, request.access);
  }
}

static void report_misaligned(uint64_t address, uint32_t size, uint32_t alignment, Place place) {
  int64_t offset = 0;
  msl_buffer* buffer = nearest_buffer(address, &offset);
  char message[160];
  snprintf(message, sizeof message, "accesses %u bytes at byte %lld, which is no multiple of %u",
           size, (long long)offset, alignment);
  report(MSL_MISALIGNED, place, buffer ? buffer->name : "", offset, message);
}

static inline void access(void* pointer, uint32_t size, bool is_store, bool is_atomic,
                          const Place* place, uint32_t alignment, Watched*& remembered) {
  launch.current->place = place;
  uint64_t address = (uint64_t)pointer;
  if (alignment && address & (alignment - 1)) {
    report_misaligned(address, size, alignment, *place);
  }
  Watched* found = size ? buffer_of(address, size, is_store, remembered) : nullptr;
  if (!found) {
    return;
  }
  const Watched& watched = *found;
  msl_buffer* buffer = watched.buffer;
  Request request;
  request.offset = address - (uint64_t)buffer->base;
  request.size = size;
  request.access = {launch.now, launch.current->thread.index_in_threadgroup,
                    (uint32_t)(place->line < kMostLines ? place->line : kMostLines), is_atomic};
  msl_traffic& traffic = is_store ? buffer->stores : buffer->loads;
  traffic.count++;
  traffic.bytes += size;
  if (watched.map) {
    uint64_t column = request.offset * kMapColumns / watched.size;
    uint64_t row = (is_store ? kMapRows : 0) + launch.map_row;
    watched.map[row * kMapColumns + column] += size;
  }
  if (is_store && !watched.shadows) {
    report(MSL_WRITE_TO_INPUT, *place, buffer->name, (int64_t)request.offset,
           "stores to a read-only buffer");
    return;
  }
  if (buffer->kind == MSL_CONSTANT) {
    return;
  }
  count_sectors(is_store ? watched.stored_in : watched.loaded_in, traffic, request);
  if (is_store) {
    store_elements(watched, request);
  } else {
    load_elements(watched, request);
  }
}

static bool yields_at_memory() {
  bool may_yield = launch.config.yield_at_memory && launch.config.order == MSL_RANDOM;
  return may_yield && random_number() % 4 == 0;
}

// The shortest way: one element of a buffer that is only read, as most loads are. Returns
// whether it was one.
static inline bool load_input(const Watched& watched, uint64_t address, uint32_t size,
                              uint32_t alignment) {
  uint64_t offset = address - watched.base;
  bool is_element = size == 1u << watched.element_shift && !(address & (size - 1)) &&
                    alignment <= size && offset < watched.size;
  if (!watched.load_times || !is_element || watched.map) {
    return false;
  }
  msl_traffic& traffic = watched.buffer->loads;
  traffic.count++;
  traffic.bytes += size;
  count_sector(watched.loaded_in[offset / kSector], traffic);
  uint32_t& last = watched.load_times[offset >> watched.element_shift];
  count_distinct(traffic, watched.element_shift, last);
  last = launch.now;
  return true;
}

extern "C" void __msl_load(void* address, unsigned size, unsigned site, unsigned kind) {
  Watched*& remembered = buffer_of_site[site % kRememberedSites];
  launch.current->place = &launch.sites[site];
  if (!load_input(*remembered, (uint64_t)address, size, kind >> kAlignmentShift)) {
    access(address, size, false, false, &launch.sites[site], kind >> kAlignmentShift, remembered);
  }
  if ((kind & kSpaceMask) != kConstantAddressSpace && yields_at_memory()) {
    yield_to_scheduler();
  }
}

extern "C" void __msl_store(void* address, unsigned size, unsigned site, unsigned kind) {
  access(address, size, true, false, &launch.sites[site], kind >> kAlignmentShift,
         buffer_of_site[site % kRememberedSites]);
}

extern "C" void __msl_stored(void*, unsigned, unsigned, unsigned) {
  if (overwrite_count) {
    finish_overwrites();
  }
  if (yields_at_memory()) {
    yield_to_scheduler();
  }
}

extern "C" void __msl_atomic(void* address, unsigned size, int kind, const char* file, int line,
                             int column) {
  bool waits = ++launch.current->atomics % kAtomicsInTurn == 0;
  if (waits || (launch.config.order == MSL_RANDOM && random_number() % 2)) {
    yield_to_scheduler();
  }
  launch.result->atomics++;
  launch.current->own_place = {line, column, file};
  const Place* place = &launch.current->own_place;
  if (kind != MSL_ATOMIC_STORE) {
    access(address, size, false, true, place, size, buffer_of_atomics);
  }
  if (kind != MSL_ATOMIC_LOAD) {
    access(address, size, true, true, place, size, buffer_of_atomics);
  }
}

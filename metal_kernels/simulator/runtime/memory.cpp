// Buffers: memory between redzones, and which buffer an address belongs to.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "state.h"

constexpr uint64_t kRedzone = 65536;
constexpr uint64_t kSector = 32;
constexpr uint64_t kLine = 64;  // of a processor's cache
constexpr uint64_t kMostRemembered = 1ull << 36;
constexpr uint64_t kLeastRemembered = 1ull << 28;
constexpr uint64_t kCheapToClear = 1ull << 20;
constexpr int kPoison = 0xff;  // what is read without having been written is NaN
// An index of 32 bits into elements of 16 bytes reaches no further.
constexpr uint64_t kIndexReach = 1ull << 36;

extern "C" void* msl_allocate(uint64_t size, void** block, uint64_t* block_size) {
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  uint64_t body = size ? (size + 15) / 16 * 16 : 16;
  uint64_t total = (kRedzone + body + kRedzone + page - 1) / page * page;
  // shared with the processes that run a part of the threadgroups
  void* memory = mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return nullptr;
  }
#ifdef MADV_HUGEPAGE
  madvise(memory, total, MADV_HUGEPAGE);
#endif
  memset(memory, kPoison, total);
  *block = memory;
  *block_size = total;
  return (uint8_t*)memory + total - kRedzone - body;
}

extern "C" void msl_free(void* block, uint64_t block_size) { munmap(block, block_size); }

// Elements are powers of two; a structure consists of several.
static uint32_t element_shift(uint32_t item_size) {
  uint32_t shift = item_size ? (uint32_t)__builtin_ctz(item_size) : 0;
  return (1u << shift) < kLargestElement ? shift : (uint32_t)__builtin_ctz(kLargestElement);
}

// What is remembered of buffers lies in one range of addresses, which costs only what is touched
// of it and stays for the next launch.
static uint8_t* remembered;
static uint64_t remembered_size, remembered_used;

static bool reserve() {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  for (uint64_t size = kMostRemembered; !remembered && size >= kLeastRemembered; size /= 2) {
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory != MAP_FAILED) {
      remembered = (uint8_t*)memory;
      remembered_size = size;
#ifdef MADV_HUGEPAGE
      madvise(memory, size, MADV_HUGEPAGE);
#endif
    }
  }
  return remembered;
}

// Zeroed; null if there is no memory.
template <class T>
static T* zeros(uint64_t count) {
  uint64_t bytes = (count * sizeof(T) + kLine - 1) / kLine * kLine;
  if (!reserve() || bytes > remembered_size - remembered_used) {
    return nullptr;
  }
  remembered_used += bytes;
  return (T*)(remembered + remembered_used - bytes);
}

static void forget() {
  if (remembered_used > kCheapToClear) {
    // given back, its pages are zero when they are touched again
    madvise(remembered, remembered_used, MADV_DONTNEED);
  } else {
    memset(remembered, 0, remembered_used);
  }
  remembered_used = 0;
}

static bool watch_elements(Watched& watched) {
  const msl_buffer& buffer = *watched.buffer;
  bool is_written_to = buffer.kind == MSL_OUTPUT || buffer.kind == MSL_THREADGROUP;
  uint64_t sectors = buffer.size / kSector + 1;
  watched.elements = (buffer.size + (1ull << watched.element_shift) - 1) >> watched.element_shift;
  if (is_written_to) {
    watched.shadows = zeros<Shadow>(watched.elements + 1);
  } else {
    watched.load_times = zeros<uint32_t>(watched.elements + 1);
  }
  watched.loaded_in = zeros<uint32_t>(sectors);
  watched.stored_in = zeros<uint32_t>(sectors);
  return (watched.shadows || watched.load_times) && watched.loaded_in && watched.stored_in;
}

bool watch(msl_buffer* buffers, uint32_t count) {
  launch.watched = zeros<Watched>(count + 1);
  if (!launch.watched) {
    return false;
  }
  launch.watched_count = count;
  for (uint32_t i = 0; i < count; ++i) {
    Watched& watched = launch.watched[i];
    watched.buffer = &buffers[i];
    watched.base = (uint64_t)buffers[i].base;
    watched.size = buffers[i].size;
    watched.map = buffers[i].map;
    bool is_variable = buffers[i].kind == MSL_THREADGROUP;
    watched.space = is_variable ? kThreadgroupMemory : kDeviceMemory;
    watched.element_shift = element_shift(buffers[i].item_size);
    launch.result->threadgroup_memory += is_variable ? buffers[i].size : 0;
    if (buffers[i].kind != MSL_CONSTANT && !watch_elements(watched)) {
      return false;
    }
  }
  return true;
}

void unwatch() {
  forget();
  launch.watched = nullptr;
  launch.watched_count = 0;
}

void poison_threadgroup_memory() {
  for (uint32_t i = 0; i < launch.watched_count; ++i) {
    msl_buffer* buffer = launch.watched[i].buffer;
    if (buffer->kind == MSL_THREADGROUP) {
      memset(buffer->base, kPoison, buffer->size);
    }
  }
}

void report_unwritten_outputs() {
  for (uint32_t i = 0; i < launch.watched_count; ++i) {
    Watched& watched = launch.watched[i];
    msl_buffer* buffer = watched.buffer;
    if (buffer->kind != MSL_OUTPUT) {
      continue;
    }
    uint64_t first = 0;
    for (uint64_t element = watched.elements; element-- > 0;) {
      if (!is_written(watched, watched.shadows[element])) {
        buffer->unwritten_bytes += 1ull << watched.element_shift;
        first = element << watched.element_shift;
      }
    }
    if (buffer->unwritten_bytes) {
      char message[160];
      snprintf(message, sizeof message,
               "nobody writes %llu of %llu bytes, the first at byte %llu (element %llu)",
               (unsigned long long)buffer->unwritten_bytes, (unsigned long long)buffer->size,
               (unsigned long long)first,
               (unsigned long long)(first / (buffer->item_size ? buffer->item_size : 1)));
      report(MSL_UNWRITTEN_OUTPUT, {}, buffer->name, (int64_t)first, message);
    }
  }
}

Watched* find_buffer(uint64_t address) {
  for (uint32_t i = 0; i < launch.watched_count; ++i) {
    if (holds(launch.watched[i].buffer, address, 1)) {
      return &launch.watched[i];
    }
  }
  return nullptr;
}

msl_buffer* nearest_buffer(uint64_t address, int64_t* offset) {
  msl_buffer* nearest = nullptr;
  uint64_t least = kIndexReach;
  for (uint32_t i = 0; i < launch.watched_count; ++i) {
    msl_buffer* buffer = launch.watched[i].buffer;
    uint64_t start = (uint64_t)buffer->base;
    uint64_t end = start + buffer->size;
    uint64_t distance = address < start ? start - address : address < end ? 0 : address - end;
    if (distance < least) {
      least = distance;
      nearest = buffer;
      *offset = (int64_t)(address - start);
    }
  }
  return nearest;
}

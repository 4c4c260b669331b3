// Buffers: memory between redzones, and which buffer an address belongs to.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "state.h"

constexpr uint64_t kRedzone = 65536;
constexpr uint64_t kSector = 32;

extern "C" void* msl_allocate(uint64_t size, void** block, uint64_t* block_size) {
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  uint64_t body = size ? (size + 15) / 16 * 16 : 16;
  uint64_t total = (kRedzone + body + kRedzone + page - 1) / page * page;
  void* memory = mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return nullptr;
  }
  // what is read without having been written is NaN
  memset(memory, 0xff, total);
  *block = memory;
  *block_size = total;
  return (uint8_t*)memory + total - kRedzone - body;
}

extern "C" void msl_free(void* block, uint64_t block_size) { munmap(block, block_size); }

bool watch(msl_buffer* buffers, uint32_t count) {
  launch.watched = (Watched*)calloc(count + 1, sizeof(Watched));
  if (!launch.watched) {
    return false;
  }
  launch.watched_count = count;
  for (uint32_t i = 0; i < count; ++i) {
    msl_buffer& buffer = buffers[i];
    Watched& watched = launch.watched[i];
    watched.buffer = &buffer;
    if (buffer.kind == MSL_THREADGROUP) {
      launch.result->threadgroup_memory += buffer.size;
    }
    if (buffer.kind == MSL_CONSTANT) {
      continue;
    }
    uint64_t sectors = buffer.size / kSector + 1;
    watched.elements = (buffer.size + buffer.item_size - 1) / buffer.item_size;
    watched.shadows = (Shadow*)calloc(watched.elements + 1, sizeof(Shadow));
    watched.loaded_phases = (uint32_t*)calloc(sectors, sizeof(uint32_t));
    watched.stored_phases = (uint32_t*)calloc(sectors, sizeof(uint32_t));
    if (!watched.shadows || !watched.loaded_phases || !watched.stored_phases) {
      return false;
    }
    for (uint64_t element = 0; element < watched.elements; ++element) {
      watched.shadows[element].initialised = buffer.initialised;
    }
  }
  return true;
}

void unwatch() {
  for (uint32_t i = 0; i < launch.watched_count; ++i) {
    free(launch.watched[i].shadows);
    free(launch.watched[i].loaded_phases);
    free(launch.watched[i].stored_phases);
  }
  free(launch.watched);
  launch.watched = nullptr;
  launch.watched_count = 0;
}

void forget_threadgroup_memory() {
  for (uint32_t i = 0; i < launch.watched_count; ++i) {
    Watched& watched = launch.watched[i];
    if (watched.buffer->kind != MSL_THREADGROUP) {
      continue;
    }
    memset(watched.buffer->base, 0xff, watched.buffer->size);
    for (uint64_t element = 0; element < watched.elements; ++element) {
      Shadow& shadow = watched.shadows[element];
      Shadow fresh = {};
      fresh.loaded = shadow.loaded;
      fresh.stored = shadow.stored;
      shadow = fresh;
    }
  }
}

void report_unwritten_outputs() {
  for (uint32_t i = 0; i < launch.watched_count; ++i) {
    Watched& watched = launch.watched[i];
    msl_buffer* buffer = watched.buffer;
    if (buffer->kind != MSL_OUTPUT || buffer->initialised) {
      continue;
    }
    uint64_t first = 0;
    for (uint64_t element = watched.elements; element-- > 0;) {
      if (!watched.shadows[element].initialised) {
        buffer->unwritten_bytes += buffer->item_size;
        first = element * buffer->item_size;
      }
    }
    if (buffer->unwritten_bytes) {
      char message[160];
      snprintf(message, sizeof message, "nobody writes %llu of %llu bytes, the first at byte %llu",
               (unsigned long long)buffer->unwritten_bytes, (unsigned long long)buffer->size,
               (unsigned long long)first);
      report(MSL_UNWRITTEN_OUTPUT, {}, buffer->name, (int64_t)first, message);
    }
  }
}

static bool holds(const msl_buffer* buffer, uint64_t address) {
  return address - (uint64_t)buffer->base < buffer->size;
}

Watched* find_buffer(uint64_t address, uint32_t hint) {
  if (hint < launch.watched_count && holds(launch.watched[hint].buffer, address)) {
    return &launch.watched[hint];
  }
  for (uint32_t i = 0; i < launch.watched_count; ++i) {
    if (holds(launch.watched[i].buffer, address)) {
      return &launch.watched[i];
    }
  }
  return nullptr;
}

msl_buffer* nearest_buffer(uint64_t address, int64_t* offset) {
  msl_buffer* nearest = nullptr;
  uint64_t least = UINT64_MAX;
  for (uint32_t i = 0; i < launch.watched_count; ++i) {
    msl_buffer* buffer = launch.watched[i].buffer;
    uint64_t start = (uint64_t)buffer->base;
    uint64_t end = start + buffer->size;
    uint64_t distance = address < start ? start - address : address - end;
    if (address >= start && address < end) {
      distance = 0;
    }
    if (distance < least) {
      least = distance;
      nearest = buffer;
      *offset = (int64_t)(address - start);
    }
  }
  return nearest;
}

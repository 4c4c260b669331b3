// What kernels log, and the steps of a thread that is traced: records of text for Python.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "state.h"

// More is left out; addresses cost nothing until they are used.
constexpr uint64_t kMostText = 64 << 20;
constexpr uint64_t kLongestRecord = 1024;
// ../debugging.py splits by these.
constexpr char kFieldEnd = 0x1f;
constexpr char kRecordEnd = 0x1e;

static char* text;
static uint64_t used;

void forget_log() { used = 0; }

extern "C" const char* msl_log_text(uint64_t* size) {
  *size = used;
  return text;
}

static void record(char tag, Place place, const char* words) {
  if (!text) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, kMostText, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) {
      return;
    }
    text = (char*)memory;
  }
  if (used + kLongestRecord > kMostText) {
    return;
  }
  const uint32_t* position = launch.current->thread.position_in_grid;
  int length = snprintf(text + used, kLongestRecord, "%c%c%u%c%u%c%u%c%s%c%d%c%s%c", tag, kFieldEnd,
                        position[0], kFieldEnd, position[1], kFieldEnd, position[2], kFieldEnd,
                        place.file ? place.file : "", kFieldEnd, place.line, kFieldEnd, words,
                        kRecordEnd);
  used += length < (int)kLongestRecord ? (uint64_t)length : 0;
}

extern "C" void __msl_log(const char* format, ...) {
  char words[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(words, sizeof words, format, arguments);
  va_end(arguments);
  record('L', launch.current->simd_place, words);
  launch.current->simd_place = {};
}

bool is_traced() {
  const uint32_t* position = launch.current->thread.position_in_grid;
  const uint32_t* wanted = launch.config.traced;
  return position[0] == wanted[0] && position[1] == wanted[1] &&
         position[2] == wanted[2];
}

// The letters of ../tracing.py.
static uint32_t bytes_of(char letter) {
  switch (letter) {
    case 'b': return 1;
    case 'c': case 'C': return 1;
    case 's': case 'S': case 'h': case 'B': return 2;
    case 'l': case 'L': return 8;
    default: return 4;
  }
}

static float from_half(uint16_t bits) {
  uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 0) {
    float value = (float)fraction / 16777216.f;
    return sign ? -value : value;
  }
  uint32_t wide = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

static int print_number(char* words, size_t size, char letter, const uint8_t* at) {
  uint64_t bits = 0;
  memcpy(&bits, at, bytes_of(letter));
  uint32_t wide = (uint32_t)bits << 16;
  float number;
  switch (letter) {
    case 'b': return snprintf(words, size, "%s", bits & 1 ? "true" : "false");
    case 'c': return snprintf(words, size, "%d", (int8_t)bits);
    case 's': return snprintf(words, size, "%d", (int16_t)bits);
    case 'i': return snprintf(words, size, "%d", (int32_t)bits);
    case 'l': return snprintf(words, size, "%lld", (long long)bits);
    case 'h': return snprintf(words, size, "%g", from_half((uint16_t)bits));
    case 'B': memcpy(&number, &wide, sizeof number); return snprintf(words, size, "%g", number);
    case 'f': memcpy(&number, &bits, sizeof number); return snprintf(words, size, "%g", number);
    default: return snprintf(words, size, "%llu", (unsigned long long)bits);
  }
}

static void print_value(char* words, size_t size, uint32_t type, const uint8_t* at) {
  char letter = (char)(type & 0xff);
  uint32_t lanes = type >> 8;
  size_t used_here = 0;
  for (uint32_t lane = 0; lane < lanes && used_here + 32 < size; ++lane) {
    const char* before = lane ? ", " : lanes > 1 ? "(" : "";
    used_here += (size_t)snprintf(words + used_here, size - used_here, "%s", before);
    used_here += (size_t)print_number(words + used_here, size - used_here, letter,
                                      at + lane * bytes_of(letter));
  }
  if (lanes > 1) {
    snprintf(words + used_here, size - used_here, ")");
  }
}

extern "C" void __msl_traced(const void* pointer, const void* variable, unsigned size,
                             unsigned type, unsigned site, const char* name) {
  if (!launch.config.traces || !is_traced()) {
    return;
  }
  char words[512], value[256];
  print_value(value, sizeof value, type, (const uint8_t*)pointer);
  uint64_t item = (uint64_t)bytes_of((char)(type & 0xff)) * (type >> 8);
  uint64_t offset = (uint64_t)pointer - (uint64_t)variable;
  if (size > item) {
    snprintf(words, sizeof words, "%s[%llu] = %s", name, (unsigned long long)(offset / item), value);
  } else {
    snprintf(words, sizeof words, "%s = %s", name, value);
  }
  record('T', launch.sites[site], words);
}

extern "C" void __msl_traced_memory(const void* pointer, unsigned type, unsigned site,
                                    unsigned is_store) {
  if (!launch.config.traces || !is_traced()) {
    return;
  }
  Watched* watched = find_buffer((uint64_t)pointer);
  if (!watched) {
    return;
  }
  char words[512], value[256];
  print_value(value, sizeof value, type, (const uint8_t*)pointer);
  uint32_t size = watched->buffer->item_size ? watched->buffer->item_size : 1;
  uint64_t index = ((uint64_t)pointer - watched->base) / size;
  snprintf(words, sizeof words, is_store ? "%s[%llu] = %s" : "%s[%llu] is %s",
           watched->buffer->name, (unsigned long long)index, value);
  record('T', launch.sites[site], words);
}

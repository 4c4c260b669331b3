// Private variables: arrays with redzones, and reads of what was never written.
#include <stdio.h>

#include "state.h"

// As private_variables.py puts them round an array.
constexpr uint32_t kArrayRedzone = 32;

unsigned char __msl_written[1 << 16];

extern "C" void __msl_guard(void* array, unsigned size) {
  Fiber* fiber = launch.current;
  if (fiber->guards < kMostGuards) {
    fiber->guarded[fiber->guards] = {(uint64_t)array, size};
  }
  fiber->guards++;
}

extern "C" void __msl_unguard(unsigned count) { launch.current->guards -= count; }

extern "C" void __msl_private(void* pointer, unsigned size, unsigned site) {
  Fiber* fiber = launch.current;
  uint64_t address = (uint64_t)pointer;
  if (!is_on_stack(address)) {
    char message[160];
    snprintf(message, sizeof message, "accesses %u bytes outside the thread's private memory",
             size);
    report(MSL_LOCAL_OUT_OF_BOUNDS, launch.sites[site], "", 0, message);
    leave_launch(kWildAccess);
  }
  for (uint32_t i = 0; i < fiber->guards && i < kMostGuards; ++i) {
    Guard guard = fiber->guarded[i];
    uint64_t end = guard.address + guard.size;
    bool before = address < guard.address && address + size > guard.address - kArrayRedzone;
    bool behind = address < end + kArrayRedzone && address + size > end && address >= guard.address;
    if (before || behind) {
      int64_t offset = (int64_t)(address - guard.address);
      char message[160];
      snprintf(message, sizeof message, "accesses %u bytes at byte %lld of an array of %u bytes",
               size, (long long)offset, guard.size);
      report(MSL_LOCAL_OUT_OF_BOUNDS, launch.sites[site], "", offset, message);
      return;
    }
  }
}

extern "C" void* __msl_no_heap(unsigned long) {
  report(MSL_UNDEFINED_BEHAVIOUR, *launch.current->place, "", 0, "there is no heap to allocate from");
  leave_launch(kNoReturn);
}

extern "C" void __msl_uninitialised_local(unsigned site) {
  report(MSL_UNINITIALISED_LOCAL, launch.sites[site], "", 0,
         "reads a private variable, or a part of it, that was never written");
}

// Handlers of clang's undefined behaviour sanitizer, in place of its own runtime.
#include <stdio.h>

#include "state.h"

struct SanitizerPlace {
  const char* file;
  uint32_t line;
  uint32_t column;
};

static void undefined(const SanitizerPlace* where, const char* message) {
  report(MSL_UNDEFINED_BEHAVIOUR, {(int)where->line, (int)where->column, where->file}, "", 0,
         message);
}

// Every handler's first argument begins with the place; the others are not needed.
#define MSL_HANDLER(name, message)                                          \
  extern "C" void __ubsan_handle_##name(const SanitizerPlace* where, ...) { \
    undefined(where, message);                                              \
  }
MSL_HANDLER(out_of_bounds, "index outside an array")
MSL_HANDLER(divrem_overflow, "division by zero or overflow")
MSL_HANDLER(shift_out_of_bounds, "shift by a negative number or too far")
MSL_HANDLER(add_overflow, "signed integer overflow (+)")
MSL_HANDLER(sub_overflow, "signed integer overflow (-)")
MSL_HANDLER(mul_overflow, "signed integer overflow (*)")
MSL_HANDLER(negate_overflow, "signed integer overflow (negation)")
#undef MSL_HANDLER

extern "C" void __ubsan_handle_float_cast_overflow(const SanitizerPlace* where, ...) {
  report(MSL_FLOAT_TO_INT, {(int)where->line, (int)where->column, where->file}, "", 0,
         "converts a number that the integer type cannot hold, or NaN");
}

extern "C" void __ubsan_handle_missing_return(const SanitizerPlace* where) {
  undefined(where, "a function ends without returning its value");
  leave_launch(kNoReturn);
}

extern "C" void __msl_half_overflow(unsigned site) {
  report(MSL_HALF_OVERFLOW, launch.sites[site], "", 0,
         "finite numbers give an infinite half: it holds up to 65504");
}

extern "C" void __msl_nan_made(unsigned site) {
  report(MSL_NAN_MADE, launch.sites[site], "", 0, "numbers give NaN");
}

extern "C" void __msl_nan_compared(unsigned site) {
  report(MSL_NAN_COMPARED, launch.sites[site], "", 0,
         "NaN is compared: it is neither less nor greater than anything");
}

extern "C" void __msl_index_wrap(unsigned a, unsigned b, unsigned site) {
  char message[160];
  snprintf(message, sizeof message, "%u * %u does not fit in 32 bits and becomes part of an index",
           a, b);
  report(MSL_INDEX_WRAP, launch.sites[site], "", 0, message);
}

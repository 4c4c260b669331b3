// A function that clang calls for conversions to bfloat and not every system has.
#include <stdint.h>
#include <string.h>

extern "C" __bf16 __truncsfbf2(float number) {
  uint32_t bits;
  memcpy(&bits, &number, sizeof bits);
  bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  // to the nearest, ties to even; a NaN stays one
  uint16_t half = is_nan ? bits >> 16 | 64 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  __bf16 result;
  memcpy(&result, &half, sizeof result);
  return result;
}

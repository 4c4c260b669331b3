// Normalised integers packed into 16 and 32 bits, and back.
#pragma once

namespace metal {
// A number in [0, 1], or in [-1, 1], as an integer of `bits` bits.
inline uint msl_to_unorm(float x, int bits) {
  return (uint)rint(saturate(x) * (float)((1u << bits) - 1));
}
inline uint msl_to_snorm(float x, int bits) {
  float most = (float)((1u << (bits - 1)) - 1);
  return (uint)(int)rint(clamp(x, -1.f, 1.f) * most) & ((1u << bits) - 1);
}
inline float msl_from_unorm(uint x, int bits) {
  uint most = (1u << bits) - 1;
  return (float)(x & most) / (float)most;
}
inline float msl_from_snorm(uint x, int bits) {
  int value = (int)(x << (32 - bits)) >> (32 - bits);
  return max((float)value / (float)((1 << (bits - 1)) - 1), -1.f);
}
inline float msl_to_srgb(float x) {
  x = saturate(x);
  return x <= 0.0031308f ? 12.92f * x : 1.055f * powr(x, 1.f / 2.4f) - 0.055f;
}
inline float msl_from_srgb(float x) {
  return x <= 0.04045f ? x / 12.92f : powr((x + 0.055f) / 1.055f, 2.4f);
}

// n components of `bits` bits, the first one lowest.
#define MSL_PACK(layout, packed, n, bits, to, from)                            \
  inline packed pack_float_to_##layout(float##n v) {                           \
    uint result = 0;                                                           \
    for (int i = 0; i < n; ++i) result |= to(v[i], bits) << (i * bits);        \
    return (packed)result;                                                     \
  }                                                                            \
  inline packed pack_half_to_##layout(half##n v) {                             \
    return pack_float_to_##layout(__builtin_convertvector(v, float##n));       \
  }                                                                            \
  inline float##n unpack_##layout##_to_float(packed x) {                       \
    float##n result;                                                           \
    for (int i = 0; i < n; ++i) result[i] = from((uint)x >> (i * bits), bits); \
    return result;                                                             \
  }                                                                            \
  inline half##n unpack_##layout##_to_half(packed x) {                         \
    return __builtin_convertvector(unpack_##layout##_to_float(x), half##n);    \
  }
MSL_PACK(unorm4x8, uint, 4, 8, msl_to_unorm, msl_from_unorm)
MSL_PACK(snorm4x8, uint, 4, 8, msl_to_snorm, msl_from_snorm)
MSL_PACK(unorm2x16, uint, 2, 16, msl_to_unorm, msl_from_unorm)
MSL_PACK(snorm2x16, uint, 2, 16, msl_to_snorm, msl_from_snorm)
#undef MSL_PACK

// Red, green and blue are on the curve of sRGB, alpha is not.
inline uint pack_float_to_srgb_unorm4x8(float4 v) {
  return pack_float_to_unorm4x8(float4{msl_to_srgb(v.x), msl_to_srgb(v.y), msl_to_srgb(v.z), v.w});
}
inline float4 unpack_unorm4x8_srgb_to_float(uint x) {
  float4 v = unpack_unorm4x8_to_float(x);
  return float4{msl_from_srgb(v.x), msl_from_srgb(v.y), msl_from_srgb(v.z), v.w};
}
inline uint pack_float_to_unorm10a2(float4 v) {
  return msl_to_unorm(v.x, 10) | msl_to_unorm(v.y, 10) << 10 | msl_to_unorm(v.z, 10) << 20 |
         msl_to_unorm(v.w, 2) << 30;
}
inline float4 unpack_unorm10a2_to_float(uint x) {
  return float4{msl_from_unorm(x, 10), msl_from_unorm(x >> 10, 10), msl_from_unorm(x >> 20, 10),
                msl_from_unorm(x >> 30, 2)};
}
// Red is highest.
inline ushort pack_float_to_unorm565(float3 v) {
  return (ushort)(msl_to_unorm(v.x, 5) << 11 | msl_to_unorm(v.y, 6) << 5 | msl_to_unorm(v.z, 5));
}
inline float3 unpack_unorm565_to_float(ushort x) {
  return float3{msl_from_unorm(x >> 11, 5), msl_from_unorm(x >> 5, 6), msl_from_unorm(x, 5)};
}

#define MSL_PACK_HALF(pack, unpack, packed, n)                              \
  inline packed pack_half_to_##pack(half##n v) {                            \
    return pack_float_to_##pack(__builtin_convertvector(v, float##n));      \
  }                                                                         \
  inline half##n unpack_##unpack##_to_half(packed x) {                      \
    return __builtin_convertvector(unpack_##unpack##_to_float(x), half##n); \
  }
MSL_PACK_HALF(srgb_unorm4x8, unorm4x8_srgb, uint, 4)
MSL_PACK_HALF(unorm10a2, unorm10a2, uint, 4)
MSL_PACK_HALF(unorm565, unorm565, ushort, 3)
#undef MSL_PACK_HALF
}  // namespace metal

// Macros that write one function for every type that Metal has it for. Metal's are functions,
// not templates: beside a vector, a scalar argument becomes a vector too.
#pragma once

// `macro` for the vectors of a scalar type.
#define MSL_SIZES(macro, type, ...) \
  macro(type##2, __VA_ARGS__) macro(type##3, __VA_ARGS__) macro(type##4, __VA_ARGS__)

// `macro` for the integers, or for their vectors. int8_t is a scalar of its own.
#define MSL_INTEGERS(macro, ...)                                                  \
  macro(char, __VA_ARGS__) macro(uchar, __VA_ARGS__) macro(short, __VA_ARGS__)    \
      macro(ushort, __VA_ARGS__) macro(int, __VA_ARGS__) macro(uint, __VA_ARGS__) \
          macro(long, __VA_ARGS__) macro(ulong, __VA_ARGS__) macro(int8_t, __VA_ARGS__)
#define MSL_INTEGER_VECTORS(macro, ...)                                      \
  MSL_SIZES(macro, char, __VA_ARGS__)                                        \
  MSL_SIZES(macro, uchar, __VA_ARGS__)                                       \
  MSL_SIZES(macro, short, __VA_ARGS__) MSL_SIZES(macro, ushort, __VA_ARGS__) \
      MSL_SIZES(macro, int, __VA_ARGS__) MSL_SIZES(macro, uint, __VA_ARGS__) \
          MSL_SIZES(macro, long, __VA_ARGS__) MSL_SIZES(macro, ulong, __VA_ARGS__)
#define MSL_FLOAT_VECTORS(macro, ...) \
  MSL_SIZES(macro, float, __VA_ARGS__) MSL_SIZES(macro, half, __VA_ARGS__)

// A function of vectors that applies the one of scalars to each component.
#define MSL_EACH1(V, name, R)                                            \
  inline R name(V x) {                                                   \
    R result;                                                            \
    for (int i = 0; i < msl_shape<V>::size; ++i) result[i] = name(x[i]); \
    return result;                                                       \
  }
#define MSL_EACH2(V, name)                                                     \
  inline V name(V x, V y) {                                                    \
    V result;                                                                  \
    for (int i = 0; i < msl_shape<V>::size; ++i) result[i] = name(x[i], y[i]); \
    return result;                                                             \
  }
#define MSL_EACH3(V, name)                                                           \
  inline V name(V x, V y, V z) {                                                     \
    V result;                                                                        \
    for (int i = 0; i < msl_shape<V>::size; ++i) result[i] = name(x[i], y[i], z[i]); \
    return result;                                                                   \
  }
#define MSL_SAME1(V, name) MSL_EACH1(V, name, V)

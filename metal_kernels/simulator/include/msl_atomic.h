// Atomics. Threads switch only where they synchronise, so that a plain read, change and
// write is atomic here.
#pragma once

namespace metal {
enum memory_order {
  memory_order_relaxed,
  memory_order_acquire,
  memory_order_release,
  memory_order_acq_rel,
  memory_order_seq_cst,
};
enum thread_scope {
  thread_scope_thread,
  thread_scope_simdgroup,
  thread_scope_threadgroup,
  thread_scope_device,
};
inline void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device) {}

template <class T>
struct atomic {
  static_assert(sizeof(T) >= 4 || is_same_v<T, bool>,
                "Metal has atomic<int>, <uint>, <float>, <bool> and <ulong> only");
  T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;
typedef atomic<ulong> atomic_ulong;

// The T of a pointer to atomic<T> in device or threadgroup memory; no other pointer has one.
template <class Pointer>
struct msl_atomic_value;
#define MSL_ATOMIC_POINTER(qualifiers)             \
  template <class T>                               \
  struct msl_atomic_value<qualifiers atomic<T>*> { \
    using type = T;                                \
  };
MSL_ATOMIC_POINTER(device)
MSL_ATOMIC_POINTER(threadgroup)
MSL_ATOMIC_POINTER(volatile device)
MSL_ATOMIC_POINTER(volatile threadgroup)
MSL_ATOMIC_POINTER(const device)
MSL_ATOMIC_POINTER(const volatile device)
MSL_ATOMIC_POINTER(const threadgroup)
MSL_ATOMIC_POINTER(const volatile threadgroup)
#undef MSL_ATOMIC_POINTER
template <class Pointer>
using msl_atomic_t = typename msl_atomic_value<Pointer>::type;

template <class T, class Pointer>
inline T* msl_plain(Pointer pointer) {
  return (T*)(void*)pointer;
}

#define MSL_ATOMIC(name, kind, expression, requirement)                                 \
  template <class Pointer, class T = msl_atomic_t<Pointer>>                             \
  inline T atomic_##name##_explicit(Pointer object, msl_given<T> operand, memory_order, \
                                    MSL_PLACE) {                                        \
    static_assert(requirement, "Metal has no such atomic for this type");               \
    T* target = msl_plain<T>(object);                                                   \
    __msl_atomic(target, sizeof(T), kind, MSL_PLACE_HERE);                              \
    T old = *target;                                                                    \
    *target = expression;                                                               \
    /* or clang hands the value to a plain load that follows, which is then not seen */ \
    __asm__ volatile("" : : : "memory");                                                \
    return old;                                                                         \
  }
MSL_ATOMIC(fetch_add, MSL_ATOMIC_CHANGE, (T)(old + operand), true)
MSL_ATOMIC(fetch_sub, MSL_ATOMIC_CHANGE, (T)(old - operand), true)
MSL_ATOMIC(fetch_and, MSL_ATOMIC_CHANGE, (T)(old & operand), is_integral_v<T>)
MSL_ATOMIC(fetch_or, MSL_ATOMIC_CHANGE, (T)(old | operand), is_integral_v<T>)
MSL_ATOMIC(fetch_xor, MSL_ATOMIC_CHANGE, (T)(old ^ operand), is_integral_v<T>)
MSL_ATOMIC(fetch_min, MSL_ATOMIC_CHANGE, operand < old ? operand : old, is_integral_v<T>)
MSL_ATOMIC(fetch_max, MSL_ATOMIC_CHANGE, operand > old ? operand : old, is_integral_v<T>)
MSL_ATOMIC(exchange, MSL_ATOMIC_STORE, operand, true)
#undef MSL_ATOMIC

// Those of 64 bits give nothing back.
#define MSL_ATOMIC_EXTREME(name, is_better)                                                \
  template <class Pointer, class T = msl_atomic_t<Pointer>>                                \
  inline void atomic_##name##_explicit(Pointer object, msl_given<T> operand, memory_order, \
                                       MSL_PLACE) {                                        \
    static_assert(is_same_v<T, ulong>, "Metal has this atomic for ulong only");            \
    T* target = msl_plain<T>(object);                                                      \
    __msl_atomic(target, sizeof(T), MSL_ATOMIC_CHANGE, MSL_PLACE_HERE);                    \
    if (operand is_better * target) *target = operand;                                     \
    __asm__ volatile("" : : : "memory");                                                   \
  }
MSL_ATOMIC_EXTREME(min, <)
MSL_ATOMIC_EXTREME(max, >)
#undef MSL_ATOMIC_EXTREME

template <class Pointer, class T = msl_atomic_t<Pointer>>
inline T atomic_load_explicit(Pointer object, memory_order, MSL_PLACE) {
  T* target = msl_plain<T>(object);
  __msl_atomic(target, sizeof(T), MSL_ATOMIC_LOAD, MSL_PLACE_HERE);
  return *target;
}
template <class Pointer, class T = msl_atomic_t<Pointer>>
inline void atomic_store_explicit(Pointer object, msl_given<T> value, memory_order, MSL_PLACE) {
  T* target = msl_plain<T>(object);
  __msl_atomic(target, sizeof(T), MSL_ATOMIC_STORE, MSL_PLACE_HERE);
  *target = value;
}
template <class Pointer, class T = msl_atomic_t<Pointer>>
inline bool atomic_compare_exchange_weak_explicit(Pointer object, thread msl_given<T>* expected,
                                                  msl_given<T> desired, memory_order, memory_order,
                                                  MSL_PLACE) {
  T* target = msl_plain<T>(object);
  __msl_atomic(target, sizeof(T), MSL_ATOMIC_CHANGE, MSL_PLACE_HERE);
  bool is_equal = __builtin_memcmp(target, expected, sizeof(T)) == 0;
  if (is_equal) {
    *target = desired;
  } else {
    *expected = *target;
  }
  return is_equal;
}
}  // namespace metal

// Logging: what a kernel writes is in the report of the launch, and printed.
#pragma once

namespace metal {
enum log_type { log_type_debug, log_type_info, log_type_default, log_type_error, log_type_fault };

// Numbers as printf wants them.
template <class T>
inline T msl_logged(T x) {
  static_assert(msl_shape<T>::size == 1, "log the components of a vector one by one");
  return x;
}
inline float msl_logged(half x) { return x; }
inline float msl_logged(bfloat x) { return x; }

#define MSL_LOG(name)                                          \
  template <class... A>                                        \
  static void name(const char* format, A... arguments) {       \
    __msl_log(format, msl_logged(arguments)...);               \
  }
// Without a constructor, and with static functions, so that a logger can lie in constant memory.
struct os_log {
  MSL_LOG(log)
  MSL_LOG(log_debug)
  MSL_LOG(log_info)
  MSL_LOG(log_error)
  MSL_LOG(log_fault)
};
#undef MSL_LOG
constant os_log os_log_default = {};
}  // namespace metal

// A kernel written by hand: 96 threads that keep values in registers across barriers.
#include <stdio.h>

#include "launch.h"

constexpr int kThreads = 96;
static float results[kThreads];

// More values than there are callee-saved registers of either kind.
static double mixed(int thread, bool waits) {
  double a = thread, b = 1, c = 2, d = 3, e = 4, f = 5, g = 6, h = 7;
  long i = thread, j = 1, k = 2, l = 3, m = 4, n = 5;
  for (int step = 0; step < 20; ++step) {
    a += b * 1.5, b += c * 0.25, c -= d, d = e + thread, e = f * 0.5, f = g + 1, g = h - a * 1e-3;
    i += j, j ^= k, k += l, l -= m, m += n, n += thread;
    if (waits) {
      __msl_threadgroup_barrier(2, "source", 1, step);
    }
    a *= 0.5, h += i % 7;
  }
  return a + b + c + d + e + f + g + h + (i + j + k + l + m + n) % 1000;
}

static void entry(void**, const msl_thread* thread) {
  results[thread->index_in_threadgroup] = mixed(thread->index_in_threadgroup, true);
}

int main() {
  for (uint32_t order = MSL_FORWARD; order <= MSL_RANDOM; ++order) {
    msl_config config = {{kThreads, 1, 1}, {kThreads, 1, 1}, order, 1, 0, 0, 0, 10000, 65536, 1, 1};
    msl_result result;
    msl_finding findings[8];
    msl_run(entry, nullptr, nullptr, 0, nullptr, &config, &result, findings, 8);
    if (result.findings || result.stopped || result.barriers != 20) {
      printf("order %u: %s\n", order, result.findings ? findings[0].message : "wrong counts");
      return 1;
    }
    for (int thread = 0; thread < kThreads; ++thread) {
      if (results[thread] != (float)mixed(thread, false)) {
        printf("order %u, thread %d: a value was lost\n", order, thread);
        return 1;
      }
    }
  }
  puts("kept");
}

// Threads as fibers: a stack each, and a switch that saves what a function call preserves.
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "state.h"

#define MSL_TEXT_(text) #text
#define MSL_TEXT(text) MSL_TEXT_(text)
#define MSL_SYMBOL(name) MSL_TEXT(__USER_LABEL_PREFIX__) #name

extern "C" void msl_switch(void** save, void* to);

#if defined(__x86_64__)
asm(".text\n"
    ".globl " MSL_SYMBOL(msl_switch) "\n"
    MSL_SYMBOL(msl_switch) ":\n"
    "  pushq %rbp\n"
    "  pushq %rbx\n"
    "  pushq %r12\n"
    "  pushq %r13\n"
    "  pushq %r14\n"
    "  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n"
    "  popq %r14\n"
    "  popq %r13\n"
    "  popq %r12\n"
    "  popq %rbx\n"
    "  popq %rbp\n"
    // not `ret`, whose target the processor expects to be that of the last call
    "  popq %rcx\n"
    "  jmp *%rcx\n");
// six registers, the address to go on at, and a word that aligns the stack
constexpr size_t kSavedWords = 8;
constexpr size_t kReturnAddress = 6;
#elif defined(__aarch64__)
asm(".text\n"
    ".balign 4\n"
    ".globl " MSL_SYMBOL(msl_switch) "\n"
    MSL_SYMBOL(msl_switch) ":\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n"
    "  stp x21, x22, [sp, #16]\n"
    "  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n"
    "  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n"
    "  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n"
    "  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n"
    "  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n"
    "  ldp x21, x22, [sp, #16]\n"
    "  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n"
    "  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n"
    "  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n"
    "  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n");
// twenty registers; x30, the eleventh from below, is where `ret` goes
constexpr size_t kSavedWords = 20;
constexpr size_t kReturnAddress = 11;
#else
#error "the simulator switches threads on x86-64 and arm64 only"
#endif

static uint8_t* stacks = nullptr;
static size_t stack_size = 0;
static void* scheduler_stack_pointer = nullptr;

bool prepare_stacks(uint32_t stack_bytes) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  // one page below each stack is inaccessible: an overflow is a fault, not a corruption
  size_t wanted = (stack_bytes + page - 1) / page * page + page;
  if (stacks && wanted == stack_size) {
    return true;
  }
  if (stacks) {
    munmap(stacks, stack_size * kMostThreads);
  }
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* memory = mmap(nullptr, wanted * kMostThreads, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED) {
    stacks = nullptr;
    return false;
  }
  stacks = (uint8_t*)memory;
  stack_size = wanted;
  for (size_t i = 0; i < kMostThreads; ++i) {
    mprotect(stacks + i * stack_size, page, PROT_NONE);
  }
  return true;
}

bool is_stack_guard(uint64_t address) {
  uint64_t offset = address - (uint64_t)stacks;
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  return stacks && offset < stack_size * kMostThreads && offset % stack_size < page;
}

bool is_on_stack(uint64_t address) {
  uint64_t start = (uint64_t)stacks + (uint64_t)(launch.current - launch.fibers) * stack_size;
  return address - start < stack_size;
}

static void fiber_main() {
  if (launch.is_plain) {
    run_plain_threads();
  } else {
    run_thread();
  }
  launch.current->state = kDone;
  yield_to_scheduler();
  __builtin_trap();  // a thread that is done is not run again
}

void start_fiber(Fiber* fiber) {
  size_t index = (size_t)(fiber - launch.fibers);
  // shifted, or the stacks of all threads would compete for the same lines of the cache
  size_t shift = index * 336 % 4096 / 16 * 16;
  uint64_t* top = (uint64_t*)(stacks + (index + 1) * stack_size - shift);
  uint64_t* frame = top - kSavedWords;
  memset(frame, 0, kSavedWords * sizeof(uint64_t));
  frame[kReturnAddress] = (uint64_t)(void*)fiber_main;
  fiber->stack_pointer = frame;
  fiber->state = kReady;
  fiber->place = &kNowhere;
  fiber->simd_place = {};
  fiber->guards = 0;
  fiber->atomics = 0;
}

void run_fiber(Fiber* fiber) {
  launch.current = fiber;
  launch.interval = launch.simdgroups[fiber->thread.simdgroup].synchronised;
  msl_switch(&scheduler_stack_pointer, fiber->stack_pointer);
  launch.current = nullptr;
}

void yield_to_scheduler() { msl_switch(&launch.current->stack_pointer, scheduler_stack_pointer); }

// Switches between the stacks of fibers. swapcontext() would do the same, but it makes a system call for the signal
// mask at each switch. With it, kernels with many barriers would be ten times as slow.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace gemlet::cuda::emulated {

#if defined(__x86_64__)

struct SavedStack {
  void* top = nullptr;  // points to the registers that a function must keep, and to the address where it continues
};

// Saves this stack in `from` and continues with `to`.
__attribute__((naked, noinline)) inline void switch_tops(void** /* from: rdi */, void* /* to: rsi */) {
  __asm__ volatile(
      "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n\t"
      "ret");
}

inline void switch_stacks(SavedStack& from, SavedStack& to) { switch_tops(&from.top, to.top); }

// The next switch to `saved` calls `entry`, which must not return.
inline void begin_stack(SavedStack& saved, unsigned char* stack, size_t bytes, void (*entry)()) {
  constexpr int kRegisters = 6;
  void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15});
  *--top = nullptr;  // the place of a return address
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kRegisters; ++i) *--top = nullptr;
  saved.top = top;
}

#else

struct SavedStack {
  ucontext_t context;
};

inline void switch_stacks(SavedStack& from, SavedStack& to) { swapcontext(&from.context, &to.context); }

inline void begin_stack(SavedStack& saved, unsigned char* stack, size_t bytes, void (*entry)()) {
  getcontext(&saved.context);
  saved.context.uc_stack.ss_sp = stack;
  saved.context.uc_stack.ss_size = bytes;
  saved.context.uc_link = nullptr;
  makecontext(&saved.context, entry, 0);
}

#endif

}  // namespace gemlet::cuda::emulated

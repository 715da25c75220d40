// A lock for code in Python that a signal handler, a fork and the end of Python cannot turn into a wait forever.
#pragma once

#include <cstdint>

namespace gemlet::bindings {

// One thread at a time is in it. All of it changes under Python's lock.
//
// The thread that is in it may come in again: signal handlers and finalizers run in the middle of whatever that thread
// does. In a forked process it is free unless the thread that forked was in it: the others do not exist there. While
// Python ends it is free as well: no other thread will run.
class Turn {
 public:
  // Waits for its turn, and lets signal handlers run meanwhile. False if this thread is in it already.
  bool enter();
  void leave();

 private:
  uint32_t forks_ = 0;
  unsigned long thread_ = 0;
  int depth_ = 0;  // 0: nobody is in it
};

}  // namespace gemlet::bindings

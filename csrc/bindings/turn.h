// A lock for Python code. Signal handlers, a fork and the end of Python cannot make a thread wait for it forever.
#pragma once

#include <cstdint>

namespace gemlet::bindings {

// Only one thread at a time holds the turn. All members change only under Python's lock.
//
// The thread that holds the turn may enter again, because signal handlers and finalizers run in the middle of its work.
// In a forked process the turn is free, unless the forking thread held it: the other threads do not exist there. The
// turn is also free while Python ends, because no other thread will run then.
class Turn {
 public:
  // Waits for the turn, and runs signal handlers meanwhile. Returns false if this thread already has the turn.
  bool enter();
  void leave();

 private:
  uint32_t forks_ = 0;
  unsigned long thread_ = 0;
  int depth_ = 0;  // 0: no thread holds the turn
};

}  // namespace gemlet::bindings

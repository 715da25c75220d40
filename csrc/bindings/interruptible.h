// Runs long work so that Python's signal handlers can end it.
#pragma once

#include <functional>

namespace gemlet::bindings {

// Runs work() without Python's lock. Python runs signal handlers only on its main thread. If that is the calling
// thread, another thread does the work, and the main thread handles signals. If a handler raises (Ctrl-C), cancel() is
// called until the work has ended, and the exception is passed on. A handler may use the core, close the object that
// works, or fork. In the forked process the work does not exist, so this function throws kCancelled there.
void run_interruptibly(std::function<void()> work, const std::function<void()>& cancel);

}  // namespace gemlet::bindings

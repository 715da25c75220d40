// Long work that signal handlers of Python can end.
#pragma once

#include <functional>

namespace gemlet::bindings {

// Runs work() without Python's lock. Python runs signal handlers only on its main thread. There, another thread does
// the work, and this one looks for signals. If a handler raises (Ctrl-C), cancel() is called until the work has ended,
// and the exception goes on. A handler may use the core, close what works, and fork. In the forked process the work
// does not exist, and this throws kCancelled.
void run_interruptibly(std::function<void()> work, const std::function<void()>& cancel);

}  // namespace gemlet::bindings

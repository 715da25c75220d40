// Long work that signal handlers of Python can end.
#pragma once

#include <functional>

namespace gemlet::bindings {

// work(), without Python's lock. Python runs signal handlers on its main thread alone: there the work is another
// thread's, and this one looks for signals. If a handler raises (Ctrl-C), cancel() is called until the work has ended,
// and the exception goes on. A handler may use the core, close what works, and fork: in the forked process the work is
// not there, and this throws kCancelled.
void run_interruptibly(std::function<void()> work, const std::function<void()>& cancel);

}  // namespace gemlet::bindings

// The core's one exception. The bindings map its code to a class of gemlet.errors; nothing in csrc/ prints, aborts or
// exits.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace gemlet {

enum class ErrorCode {
  kConfig,          // ConfigError: a model configuration that cannot be
  kModelFile,       // ModelFileError: a file that cannot be read any more
  kTensor,          // TensorError: missing, extra, mis-shaped, non-finite
  kInvalidRequest,  // InvalidRequestError: a caller's argument
  kContextLength,   // ContextLengthError
  kUnsupported,     // UnsupportedError
  kClosed,          // ModelClosedError
  kCancelled,       // CancelledError
  kMemory,          // MemoryLimitError
  kInternal,        // GemletError: a fault of the core itself
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// Throws Error with the arguments streamed into one message.
template <typename... Args>
[[noreturn]] void fail(ErrorCode code, Args&&... args) {
  std::ostringstream out;
  (out << ... << std::forward<Args>(args));
  throw Error(code, out.str());
}

}  // namespace gemlet

// The core's only exception. The bindings turn its code into a class of gemlet.errors. Nothing in csrc/ prints, aborts
// or exits.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace gemlet {

enum class ErrorCode {
  kConfig,          // ConfigError: an impossible model configuration
  kModelFile,       // ModelFileError: a file that can no longer be read
  kTensor,          // TensorError: missing, unexpected, of another shape, not finite
  kInvalidRequest,  // InvalidRequestError: a wrong argument
  kContextLength,   // ContextLengthError
  kUnsupported,     // UnsupportedError
  kClosed,          // ModelClosedError
  kCancelled,       // CancelledError
  kMemory,          // MemoryLimitError
  kDevice,          // DeviceError: the GPU failed
  kInternal,        // GemletError: a fault of the core itself
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// Throws an Error whose message is the arguments, one after the other.
template <typename... Args>
[[noreturn]] void fail(ErrorCode code, Args&&... args) {
  std::ostringstream out;
  (out << ... << std::forward<Args>(args));
  throw Error(code, out.str());
}

}  // namespace gemlet

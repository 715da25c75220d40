// The core's only exception. The bindings turn its code into a class of gemlet.errors. Nothing in csrc/ prints, aborts
// or exits.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
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

// Throws a kConfig error unless low <= value <= high. A NaN is out of every range. `where` is what the message begins
// with.
template <typename Value>
void check_range(const std::string& where, std::string_view field, Value value, std::type_identity_t<Value> low,
                 std::type_identity_t<Value> high) {
  if (value >= low && value <= high) return;
  fail(ErrorCode::kConfig, where, field, " is ", value, ", expected ", low, " to ", high);
}

}  // namespace gemlet

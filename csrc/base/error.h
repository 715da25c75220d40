// The core's only exception. The bindings turn its code into a class of gemlet.errors. Nothing in csrc/ prints, aborts
// or exits.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

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

// A part of a message: a text, a character or a number. Standard streams are not used because they link locales: they
// added 75 KB to the compressed library.
class MessagePart {
 public:
  MessagePart(std::string_view text) : text_(text) {}
  MessagePart(const char* text) : text_(text) {}
  MessagePart(const std::string& text) : text_(text) {}
  MessagePart(char character) : own_(1, character), text_(own_) {}
  MessagePart(double number);  // six digits, as printf("%g") writes it
  template <std::integral Number>
  MessagePart(Number number) : own_(std::to_string(number)), text_(own_) {}
  MessagePart(const MessagePart&) = delete;  // text_ may point into own_
  MessagePart& operator=(const MessagePart&) = delete;

  std::string_view text() const { return text_; }

 private:
  std::string own_;
  std::string_view text_;
};

// Throws an Error whose message is the parts, one after the other.
[[noreturn]] void fail_with(ErrorCode code, std::initializer_list<MessagePart> parts);

template <typename... Parts>
[[noreturn]] void fail(ErrorCode code, const Parts&... parts) {
  fail_with(code, {MessagePart(parts)...});
}

// Throws a kConfig error unless low <= value <= high. A NaN is out of every range. The message begins with `where`.
template <typename Value>
void check_range(const std::string& where, std::string_view field, Value value, std::type_identity_t<Value> low,
                 std::type_identity_t<Value> high) {
  if (value >= low && value <= high) return;
  fail(ErrorCode::kConfig, where, field, " is ", value, ", expected ", low, " to ", high);
}

}  // namespace gemlet

#include "base/error.h"

#include <cstdio>

namespace gemlet {

MessagePart::MessagePart(double number) {
  char digits[32];
  own_.assign(digits, static_cast<size_t>(std::snprintf(digits, sizeof digits, "%g", number)));
  text_ = own_;
}

void fail_with(ErrorCode code, std::initializer_list<MessagePart> parts) {
  std::string message;
  for (const MessagePart& part : parts) message += part.text();
  throw Error(code, message);
}

}  // namespace gemlet

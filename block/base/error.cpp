#include "block/base/error.h"

#include <cstring>

namespace platter {

std::string errno_text(int code) {
  char buffer[128];
  // The GNU variant returns the text, which need not be in the buffer.
  return strerror_r(code, buffer, sizeof buffer);
}

Error::Error(int code, std::string message)
    : code_(code), message_(std::make_shared<const std::string>(std::move(message))) {}

Error Error::from_errno(int code) { return Error(code, errno_text(code)); }

Error Error::in(std::string_view context) const {
  return Error(code_, fmt::format("{}: {}", context, *message_));
}

std::unexpected<Error> fail_errno(int code) {
  return std::unexpected<Error>(Error::from_errno(code));
}

}  // namespace platter

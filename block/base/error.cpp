#include "block/base/error.h"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace platter {
namespace {

std::string one_line(const std::vector<Error::Part>& parts) {
  std::string line;
  for (const Error::Part& part : parts) {
    if (!line.empty()) line += "; ";
    line += part.reason;
    if (part.hint.empty()) continue;
    line += ": ";
    std::ranges::replace_copy(part.hint, std::back_inserter(line), '\n', ' ');
    if (line.ends_with('.')) line.pop_back();
  }
  return line;
}

}  // namespace

std::string errno_text(int code) {
  char buffer[128];
  // The GNU variant returns the text, which need not be in the buffer.
  return strerror_r(code, buffer, sizeof buffer);
}

Error::Error(int code, std::string message)
    : code_(code),
      story_(std::make_shared<const Story>(std::vector<Part>{{std::move(message), {}}})) {}

Error Error::from_errno(int code) { return Error(code, errno_text(code)); }

Error::Story::Story(std::vector<Part> told) : parts(std::move(told)), message(one_line(parts)) {}

Error Error::with_parts(std::vector<Part> parts) const {
  Error result = *this;
  result.story_ = std::make_shared<const Story>(std::move(parts));
  return result;
}

Error Error::in(std::string_view context) const {
  std::vector<Part> parts = story_->parts;
  for (Part& part : parts) part.reason = fmt::format("{}: {}", context, part.reason);
  return with_parts(std::move(parts));
}

Error Error::with_hint(std::string hint) const {
  std::vector<Part> parts = story_->parts;
  parts.back().hint = std::move(hint);
  return with_parts(std::move(parts));
}

Error Error::as(ErrorKind kind) const {
  Error result = *this;
  result.kind_ = kind;
  return result;
}

Error Error::also(const Error& further) const {
  std::vector<Part> parts = story_->parts;
  parts.insert(parts.end(), further.parts().begin(), further.parts().end());
  return with_parts(std::move(parts));
}

std::unexpected<Error> fail_errno(int code) {
  return std::unexpected<Error>(Error::from_errno(code));
}

}  // namespace platter

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
      story_(std::make_shared<const Story>(std::vector<Part>{{std::move(message), {}}}, "")) {}

Error Error::from_errno(int code) { return Error(code, errno_text(code)); }

Error::Story::Story(std::vector<Part> told, std::string named)
    : parts(std::move(told)), file(std::move(named)), message(one_line(parts)) {}

Error Error::told(std::vector<Part> parts, std::string file) const {
  Error result = *this;
  result.story_ = std::make_shared<const Story>(std::move(parts), std::move(file));
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

Error Error::naming(std::string file) const { return told(story_->parts, std::move(file)); }

Error Error::renamed(std::string_view from, std::string_view to) const {
  const auto rename = [&](std::string& text) {
    for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
      text.replace(at, from.size(), to);
    }
  };
  std::vector<Part> parts = story_->parts;
  for (Part& part : parts) {
    rename(part.reason);
    rename(part.hint);
  }
  return told(std::move(parts), file() == from ? std::string(to) : file());
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

#include "tools/img/arguments.h"

#include "tools/img/common.h"

namespace platter::img {

Arguments::Arguments(int argc, char** argv, std::span<const Flag> flags)
    : argc_(argc), argv_(argv) {
  letters_ = ":";  // tell a missing value from an unknown option, and print nothing
  for (const Flag& flag : flags) {
    if (flag.id < 256) {
      letters_ += static_cast<char>(flag.id);
      if (flag.has_value) letters_ += ':';
    }
    if (flag.name != nullptr) {
      longs_.push_back(
          {flag.name, flag.has_value ? required_argument : no_argument, nullptr, flag.id});
    }
  }
  longs_.push_back({nullptr, 0, nullptr, 0});
  optind = 0;  // start afresh
}

std::optional<Option> Arguments::next() {
  if (failed_) return std::nullopt;
  const int id = getopt_long(argc_, argv_, letters_.c_str(), longs_.data(), nullptr);
  if (id == -1) return std::nullopt;
  if (id == ':' || id == '?') {
    failed_ = true;
    if (id == ':') {
      usage_error("missing argument for option '{}'", argv_[optind - 1]);
    } else {
      usage_error("unrecognized option '{}'", argv_[optind - 1]);
    }
    return std::nullopt;
  }
  return Option{id, optarg != nullptr ? std::string_view(optarg) : std::string_view()};
}

std::vector<std::string> Arguments::rest() const { return {argv_ + optind, argv_ + argc_}; }

}  // namespace platter::img

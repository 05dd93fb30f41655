// A sub-command's command line, read as getopt_long reads it: short options may be bundled, long
// ones shortened as long as they stay clear, options and file names mixed.
//
//   constexpr Flag kFlags[] = {{'f', "format", true}, {kOutput, "output", true}};
//   Arguments arguments(argc, argv, kFlags);
//   while (std::optional<Option> option = arguments.next()) switch (option->id) { ... }
//   if (arguments.failed()) return 1;         // already reported
//   arguments.rest()                          // what is no option
//
// Threads: one; getopt's state is the process's.
#pragma once

#include <getopt.h>

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace platter::img {

// An option: its letter or, above 255, a number for one that has only a long name.
struct Flag {
  int id;
  const char* name;  // long name; nullptr: none
  bool has_value = false;
};

// Numbers of options that have no letter.
enum LongOnly : int {
  kOutput = 256,
  kBackingChain,
  kObject,
  kImageOpts,
  kTargetImageOpts,
  kTargetIsZero,
  kSizeOption,
  kPreallocation,
  kShrink,
  kSalvage,
  kBitmaps,
  kSkipBroken,
  kForce,
  kFlushInterval,
  kNoDrain,
  kPattern,
  kAdd,
  kRemove,
  kClear,
  kEnable,
  kDisable,
  kMerge,
  kTo,
};

struct Option {
  int id;
  std::string_view value;
};

class Arguments {
 public:
  Arguments(int argc, char** argv, std::span<const Flag> flags);

  // The next option; nothing at the end and after an error, which has then been reported.
  std::optional<Option> next();
  bool failed() const { return failed_; }
  std::vector<std::string> rest() const;

 private:
  int argc_;
  char** argv_;
  std::string letters_;
  std::vector<option> longs_;
  bool failed_ = false;
};

}  // namespace platter::img

// What the sub-commands of `platter img` share: messages, the options they have in common, opening
// images, running a coroutine to its end.
//
// Threads: one; the program's name is set once at the start.
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "block/base/error.h"
#include "block/exec/executor.h"
#include "block/exec/task.h"
#include "block/node/graph.h"
#include "tools/img/arguments.h"

namespace platter::img {

inline constexpr std::uint64_t kSector = 512;  // bytes

// The name this tool was called by, in front of every message.
void set_program(std::string name);
const std::string& program();

// "PROGRAM: text" on standard error. (The texts are checked at run time: some are chosen there.)
void report_text(std::string_view text);
template <class... Args>
void report(fmt::format_string<Args...> text, Args&&... args) {
  report_text(fmt::format(text, std::forward<Args>(args)...));
}
// The same with a hint at --help; gives 1, the exit status for it.
int usage_error_text(std::string_view text);
template <class... Args>
int usage_error(fmt::format_string<Args...> text, Args&&... args) {
  return usage_error_text(fmt::format(text, std::forward<Args>(args)...));
}

// Writes to standard output.
void print(std::string_view text);
// Writes out what standard output still holds; reports a failure and gives 1, otherwise `status`.
// A reader that is gone is no failure.
int finish_output(int status);

enum class OutputFormat : std::uint8_t { kHuman, kJson };

struct OpenSpec;

// The options that most sub-commands have.
struct CommonOptions {
  std::optional<std::string> format;
  OutputFormat output = OutputFormat::kHuman;
  bool image_opts = false;
  bool force_share = false;
  bool quiet = false;
  bool progress = false;
  std::string cache = "writeback";
  std::string source_cache = "writeback";

  // Takes kOutput, kObject, kImageOpts, and the letters f q p t T U: a verb in which a letter means
  // something else looks at it first. An error has been reported.
  struct Taken {
    bool taken = false;
    bool failed = false;
  };
  Taken take(const Option& option);
  // Once all are taken: whether they fit each other. False: reported.
  bool agree() const;

  // How they say that `filename` is opened: for reading, with the cache mode of -t.
  OpenSpec spec(std::string filename) const;
};

// A sub-command's command line (arguments.h) without the options that go to `common`, and without
// -h, which prints the help.
//
//   VerbArguments arguments(argc, argv, kFlags, common);
//   while (const std::optional<Option> option = arguments.next()) switch (option->id) { ... }
//   if (const std::optional<int> status = arguments.ended()) return *status;
class VerbArguments {
 public:
  // `refused` is the exit status when a common option will not do.
  VerbArguments(int argc, char** argv, std::span<const Flag> flags, CommonOptions& common,
                int refused = 1)
      : arguments_(argc, argv, flags), common_(common), refused_(refused) {}

  std::optional<Option> next();
  // The exit status when there is nothing to do but to leave; all has been said.
  std::optional<int> ended() const { return ended_; }
  std::vector<std::string> rest() const { return arguments_.rest(); }

 private:
  Arguments arguments_;
  CommonOptions& common_;
  const int refused_;
  std::optional<int> ended_;
};

// --output=human|json; nothing (and a report) for anything else.
std::optional<OutputFormat> parse_output(std::string_view text);

// --object TYPE,id=ID,...: checks it and keeps a secret for the drivers that ask. False: reported.
bool take_object(std::string_view text);

// -t and -T: none, writeback, unsafe, directsync, writethrough. False: no such mode.
bool parse_cache(std::string_view mode, OpenFlags& flags);

// A size with suffix. On junk or a value outside [least, most]: reports as `what` ("image size")
// and gives nothing.
std::optional<std::uint64_t> parse_bounded_size(std::string_view text, std::string_view what,
                                                std::uint64_t least, std::uint64_t most);
inline constexpr std::uint64_t kMostBytes = 0x7FFF'FFFF'FFFF'FFFF;
// A whole number, also 0x... or 0...; reports "Invalid WHAT specified" when it is none.
std::optional<std::uint64_t> parse_bounded_number(std::string_view text, std::string_view what,
                                                  std::uint64_t least, std::uint64_t most);

// Opening
// -------------------------------------------------------------------------------------------

struct OpenSpec {
  std::string filename;
  std::optional<std::string> format;
  bool image_opts = false;  // filename is an option string
  OpenFlags flags;          // read_only decides the rights
  std::string cache;        // mode, already checked; empty: writeback
  Options more;             // options beside those of the name, such as encrypt.key-secret
};

// An image for reading or, unless flags.read_only, for writing. Errors name the image.
Task<Result<Edge>> open_image(OpenSpec spec);
// The same for who names the image himself.
Task<Result<Edge>> open_image_plain(OpenSpec spec);

// Closes it; reports what goes wrong with that, and gives 1, otherwise `status`.
Task<int> close_image(Edge& image, const std::string& name, int status);

// Whether two names stand for one file of this machine, by whatever path.
bool same_file(const std::string& a, const std::string& b);
// The image below `top` that is called `name`: as stored in the image above it, in full, or by any
// other path of that file, relative ones taken from the image above it; nullptr: there is none.
BlockNode* find_in_chain(BlockNode& top, const std::string& name);

// What is to be said of the image `name`: with the name in front, unless the error names it.
Error about(const std::string& name, const Error& error);
template <class... Args>
void report_about(const std::string& name, fmt::format_string<Args...> text, Args&&... args) {
  report("{}: {}", name, fmt::format(text, std::forward<Args>(args)...));
}

// "PROGRAM: reason" on standard error for each failure in it, its hint on lines of its own below.
void report_error(const Error& error);
// Reports a failed Result's error and gives 1.
template <class T>
int report_failure(const Result<T>& failed) {
  report_error(failed.error());
  return 1;
}
// The same of work on the image `name`.
template <class T>
int report_failure(const std::string& name, const Result<T>& failed) {
  report_error(about(name, failed.error()));
  return 1;
}

// Runs `start()`, which gives a Task<int>, on an executor of its own.
template <class Start>
int run_to_end(Start&& start) {
  Result<std::unique_ptr<Executor>> executor = Executor::create();
  if (!executor) return report_failure(executor);
  return (*executor)->block_on(std::forward<Start>(start));
}

// Creation options
// ----------------------------------------------------------------------------------

// Collects -o: several are joined. False (reported): a list that is empty or ends in a comma.
bool add_create_options(std::optional<std::string>& all, std::string_view more);
// Whether the list asks for "help" or "?".
bool asks_for_help(std::string_view options);

// The options with which `format` images are made at `filename` ("" : the format's alone), in the
// order in which they are printed. Fails when there is no such format or it cannot create.
struct CreateOptions {
  const DriverType* format = nullptr;
  const DriverType* protocol = nullptr;
  std::vector<CreateOption> all;
  const CreateOption* find(std::string_view name) const;
};
Result<CreateOptions> create_options(const std::string& format, const std::string& filename);
// An option's line in a list of them.
std::string option_line(const CreateOption& option);
int print_create_options(const std::string& format, const std::optional<std::string>& filename);

// Parses the text of -o against `known`: names and types are checked; sizes, numbers and switches
// become their plain form ("1M" is "1048576").
Result<Options> parse_create_options(const CreateOptions& known, std::string_view text);

}  // namespace platter::img

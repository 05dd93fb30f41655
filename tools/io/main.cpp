// `platter io`: the program's options, and the loop over its commands.
#include <getopt.h>
#include <sys/poll.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>

#include "tools/img/common.h"
#include "tools/io/open.h"
#include "tools/tools.h"

namespace platter::io_tool {
namespace {

// Where users of qemu-io look for it, whatever name the program has.
constexpr std::string_view kPrompt = "qemu-io> ";

enum LongOnly : int { kObject = 256, kImageOpts };

constexpr option kLongOptions[] = {
    {"help", no_argument, nullptr, 'h'},
    {"version", no_argument, nullptr, 'V'},
    {"cmd", required_argument, nullptr, 'c'},
    {"format", required_argument, nullptr, 'f'},
    {"read-only", no_argument, nullptr, 'r'},
    {"snapshot", no_argument, nullptr, 's'},
    {"nocache", no_argument, nullptr, 'n'},
    {"copy-on-read", no_argument, nullptr, 'C'},
    {"misalign", no_argument, nullptr, 'm'},
    {"native-aio", no_argument, nullptr, 'k'},
    {"aio", required_argument, nullptr, 'i'},
    {"discard", required_argument, nullptr, 'd'},
    {"cache", required_argument, nullptr, 't'},
    {"trace", required_argument, nullptr, 'T'},
    {"force-share", no_argument, nullptr, 'U'},
    {"object", required_argument, nullptr, kObject},
    {"image-opts", no_argument, nullptr, kImageOpts},
    {nullptr, 0, nullptr, 0},
};

void print_usage(std::string_view program) {
  print(R"(Usage: {} [OPTIONS]... [-c STRING]... [file]
Reads, writes and verifies any part of a disk image.

  --object OBJECTDEF   define an object such as 'secret' for
                       passwords and/or encryption keys
  --image-opts         treat file as option string
  -c, --cmd STRING     execute command with its arguments
                       from the given string
  -f, --format FMT     specifies the block driver to use
  -r, --read-only      open for reading only
  -s, --snapshot       write to a temporary overlay
  -n, --nocache        disable host cache, short for -t none
  -C, --copy-on-read   copy what is read from backing images
  -m, --misalign       misalign buffers, as O_DIRECT would not take them
  -k, --native-aio     short for -i native
  -i, --aio=MODE       threads, native or io_uring (all mean io_uring)
  -t, --cache=MODE     use the given cache mode for the image
  -d, --discard=MODE   use the given discard mode for the image
  -T, --trace PATTERN  accepted; there are no trace events
  -U, --force-share    tolerate other users of the image
  -h, --help           display this help and exit
  -V, --version        output version information and exit

See '{} -c help' for information on available commands.
)",
        program, program);
}

struct Invocation {
  OpenSpec spec;
  std::vector<std::string> lines;  // of -c
  std::optional<std::string> format;
  bool image_opts = false;
  bool misaligned = false;
  std::optional<std::string> file;
};

// "[enable=]PATTERN[,...]": a name without wildcards is that of an event, and there are none.
void warn_of_trace(const Session& session, std::string_view text) {
  std::string_view pattern = text.substr(0, text.find(','));
  if (pattern.starts_with("enable=")) pattern.remove_prefix(7);
  if (pattern.empty() || pattern.find_first_of("*?=") != std::string_view::npos) return;
  session.complain(fmt::format("warning: trace event '{}' does not exist", pattern));
}

// Nothing to run when it gives an exit status.
std::optional<int> parse(Session& session, int argc, char** argv, Invocation& invocation) {
  std::string program = session.program();
  argv[0] = program.data();  // for getopt's messages
  OpenSpec& spec = invocation.spec;
  optind = 0;
  for (int letter;
       (letter = getopt_long(argc, argv, "hVc:d:f:rsnCmki:t:T:U", kLongOptions, nullptr)) != -1;) {
    if (const std::optional<bool> taken = take_open_option(session, spec, letter)) {
      if (!*taken) return 1;
      continue;
    }
    switch (letter) {
      case 'f':
        invocation.format = optarg;
        break;
      case 'c':
        invocation.lines.emplace_back(optarg);
        break;
      case 'm':
        invocation.misaligned = true;
        break;
      case 'T':
        warn_of_trace(session, optarg);
        break;
      case 'V':
        print("{} version {}\n", session.program(), PLATTER_VERSION);
        return 0;
      case 'h':
        print_usage(session.program());
        return 0;
      case kObject:
        if (const auto status = take_object(session, optarg)) return status;
        break;
      case kImageOpts:
        invocation.image_opts = true;
        break;
      default:
        print_usage(session.program());
        return 1;
    }
  }
  if (argc - optind > 1) {
    print_usage(session.program());
    return 1;
  }
  if (invocation.format && invocation.image_opts) {
    session.complain("--image-opts and -f are mutually exclusive");
    return 1;
  }
  if (optind < argc) invocation.file = argv[optind];
  return std::nullopt;
}

// Lines of standard input. While requests run beside, waiting for a line lets them finish.
class LineReader {
 public:
  // Nothing at the end.
  Task<std::optional<std::string>> next(Session& session) {
    for (;;) {
      if (const std::size_t end = buffer_.find('\n', at_); end != std::string::npos) {
        std::string line = buffer_.substr(at_, end - at_);
        at_ = end + 1;
        // What this line complains of comes after what the lines before it have printed.
        std::fflush(stdout);
        co_return line;
      }
      buffer_.erase(0, at_);
      at_ = 0;
      if (ended_) {
        if (buffer_.empty()) co_return std::nullopt;
        co_return std::exchange(buffer_, {});
      }
      auto filled = fill(session);
      co_await filled;
    }
  }

 private:
  Task<void> fill(Session& session) {
    std::fflush(stdout);
    if (session.running() != 0) {
      IoOp readable = io::poll(STDIN_FILENO, POLLIN);
      co_await readable;
    }
    // What finished requests hold must not pile up over a long script.
    session.print_reports();
    std::fflush(stdout);
    char bytes[4096];
    ssize_t got;
    do {
      got = ::read(STDIN_FILENO, bytes, sizeof bytes);
    } while (got < 0 && errno == EINTR);
    if (got > 0) {
      buffer_.append(bytes, static_cast<std::size_t>(got));
    } else {
      ended_ = true;
    }
  }

  std::string buffer_;
  std::size_t at_ = 0;
  bool ended_ = false;
};

Task<bool> run_interactive(Session& session) {
  LineReader lines;
  bool succeeded = true;
  while (!session.quitting()) {
    put(kPrompt);
    auto line = co_await lines.next(session);
    if (!line) {
      if (isatty(STDIN_FILENO) != 0) put("\n");
      break;
    }
    auto good = co_await run_line(session, std::move(*line));
    succeeded = succeeded && good;
  }
  co_return succeeded;
}

Task<bool> run_lines(Session& session, const std::vector<std::string>& lines) {
  bool succeeded = true;
  for (const std::string& line : lines) {
    if (session.quitting()) break;
    auto good = co_await run_line(session, line);
    succeeded = succeeded && good;
  }
  co_return succeeded;
}

// The image that the command line names.
Task<bool> open_first(Session& session, Invocation& invocation) {
  OpenSpec spec = std::move(invocation.spec);
  if (invocation.image_opts) {
    Result<Options> options = Options::parse_keyval(*invocation.file);
    if (!options) {
      session.complain(options.error());
      co_return false;
    }
    spec.options = std::move(*options);
  } else {
    spec.filename = *invocation.file;
    if (invocation.format) spec.options.set("driver", *invocation.format);
  }
  auto opened = co_await open_image(session, std::move(spec));
  co_return opened;
}

Task<bool> run_all(Session& session, Invocation& invocation) {
  if (invocation.file) {
    auto opened = co_await open_first(session, invocation);
    if (!opened) co_return false;
  }
  auto running =
      invocation.lines.empty() ? run_interactive(session) : run_lines(session, invocation.lines);
  const bool succeeded = co_await running;
  auto closed = co_await session.close();
  co_return succeeded&& closed;
}

}  // namespace

int run_io(std::string program, int argc, char** argv) {
  img::set_program(program);  // for what it reports about objects
  // Whoever reads the output may stop; what has been written is kept all the same.
  std::signal(SIGPIPE, SIG_IGN);
  Session session(std::move(program));
  Invocation invocation;
  if (const std::optional<int> status = parse(session, argc, argv, invocation)) return *status;
  if (invocation.misaligned) session.set_misaligned();
  Result<std::unique_ptr<Executor>> executor = Executor::create();
  if (!executor) {
    session.complain(executor.error());
    return 1;
  }
  const bool succeeded = (*executor)->block_on([&] { return run_all(session, invocation); });
  return img::finish_output(succeeded ? 0 : 1);
}

}  // namespace platter::io_tool

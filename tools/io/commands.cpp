// The table of commands and what `help` says about each.
//
// Names, arguments and summaries are qemu-io's, since scripts and their expected outputs show them;
// what `help NAME` adds is this program's own.
#include <algorithm>
#include <array>

#include "tools/io/session.h"

namespace platter::io_tool {
namespace {

constexpr const char* kReadDetails = R"(
 Reads LEN bytes at OFF into memory.

 Example:
 'read -v 512 1k' - shows the kilobyte that begins at byte 512

 -b, -- read the VM state instead of the disk
 -C, -- print the statistics as comma-separated values
 -l, -- number of bytes to compare (with -P)
 -p, -- accepted and without effect
 -P, -- compare what was read with this byte
 -q, -- print no statistics
 -s, -- first byte to compare, from the start of what was read (with -P)
 -v, -- show what was read

)";

constexpr const char* kReadvDetails = R"(
 Reads at OFF with one request into several buffers, of LEN bytes each.

 Example:
 'readv -v 512 1k 1k' - shows two kilobytes from byte 512 on

 -C, -- print the statistics as comma-separated values
 -P, -- compare what was read with this byte
 -q, -- print no statistics
 -v, -- show what was read

)";

constexpr const char* kAioReadDetails = R"(
 Starts to read at OFF into buffers of LEN bytes, and goes on with the next command.
 The result is printed when it is there, at the latest by 'aio_flush'; a request that
 was started counts as a success even if it fails later.

 Example:
 'aio_read -v 512 1k 1k' - shows two kilobytes from byte 512 on

 -C, -- print the statistics as comma-separated values
 -i, -- do nothing but count an invalid request
 -P, -- compare what was read with this byte
 -q, -- print no statistics
 -v, -- show what was read

)";

constexpr const char* kWriteDetails = R"(
 Writes LEN bytes at OFF; each is 0xcd if nothing else is said.

 Example:
 'write -P 0x11 512 1k' - writes a kilobyte of 0x11 at byte 512

 -b, -- write the VM state instead of the disk
 -c, -- store the data packed (compressed)
 -C, -- print the statistics as comma-separated values
 -f, -- return only when the data is durable
 -n, -- with -z, fail rather than write zeroes as data
 -p, -- accepted and without effect
 -P, -- write this byte
 -q, -- print no statistics
 -s, -- write the bytes of this file, over and over
 -u, -- with -z, the space may be given back
 -z, -- write zeroes, as such

)";

constexpr const char* kWritevDetails = R"(
 Writes at OFF with one request from several buffers, of LEN bytes each.

 Example:
 'writev 512 1k 1k' - writes two kilobytes at byte 512

 -C, -- print the statistics as comma-separated values
 -f, -- return only when the data is durable
 -P, -- write this byte
 -q, -- print no statistics

)";

constexpr const char* kAioWriteDetails = R"(
 Starts to write buffers of LEN bytes at OFF, and goes on with the next command.
 The result is printed when it is there, at the latest by 'aio_flush'; a request that
 was started counts as a success even if it fails later.

 Example:
 'aio_write 512 1k 1k' - writes two kilobytes at byte 512

 -C, -- print the statistics as comma-separated values
 -f, -- return only when the data is durable
 -i, -- do nothing but count an invalid request
 -P, -- write this byte
 -q, -- print no statistics
 -u, -- with -z, the space may be given back
 -z, -- write zeroes, as such

)";

constexpr const char* kDiscardDetails = R"(
 Says that LEN bytes at OFF are no longer needed.

 Example:
 'discard 512 1k' - discards the kilobyte that begins at byte 512

 -C, -- print the statistics as comma-separated values
 -q, -- print no statistics

)";

constexpr const char* kOpenDetails = R"(
 Opens an image for the commands that follow.

 Example:
 'open -n -o driver=raw /tmp/data' - opens a raw file past the page cache

 -C, -- copy what is read from a backing image into this one
 -d, -- what a discard does: unmap or ignore
 -i, -- way of doing I/O: threads, native or io_uring
 -k, -- short for -i native
 -n, -- short for -t none
 -o, -- options of the driver
 -r, -- open for reading only
 -s, -- write to a temporary overlay
 -t, -- cache mode: none, writeback, writethrough, directsync, unsafe
 -U, -- tolerate other users of the image
)";

constexpr const char* kReopenDetails = R"(
 Changes how the open image is used.

 Example:
 'reopen -o cache.direct=on' - goes past the page cache from now on

 -c, -- cache mode: none, writeback, writethrough, directsync, unsafe
 -o, -- options of the driver
 -r, -- for reading only
 -w, -- for reading and writing

)";

constexpr const char* kSigraiseDetails = R"(
 Sends the signal of that number to this program.

 Example:
 'sigraise 15' - raises SIGTERM

)";

constexpr std::uint32_t kWrite = perm::kWrite;
constexpr std::uint32_t kTruncate = perm::kWrite | perm::kResize;

// Name, alias, function, arguments from and to, works closed, rights, synopsis, summary, details.
constexpr std::array kCommands{
    Command{"abort", "", run_abort, 0, 0, true, 0, nullptr,
            "simulate a program crash using abort(3)", nullptr},
    Command{"aio_flush", "", run_aio_flush, 0, 0, false, 0, nullptr,
            "completes all outstanding aio requests", nullptr},
    Command{"aio_read", "", run_aio_read, 2, -1, false, 0, "[-Ciqv] [-P pattern] off len [len..]",
            "asynchronously reads a number of bytes", kAioReadDetails},
    Command{"aio_write", "", run_aio_write, 2, -1, false, kWrite,
            "[-Cfiquz] [-P pattern] off len [len..]", "asynchronously writes a number of bytes",
            kAioWriteDetails},
    Command{"alloc", "a", run_alloc, 1, 2, false, 0, "offset [count]",
            "checks if offset is allocated in the file", nullptr},
    Command{"break", "", run_break, 2, 2, false, 0, "event tag",
            "sets a breakpoint on event and tags the stopped request as tag", nullptr},
    Command{"close", "c", run_close, 0, 0, false, 0, nullptr, "close the current open file",
            nullptr},
    Command{"discard", "d", run_discard, 2, -1, false, kWrite, "[-Cq] off len",
            "discards a number of bytes at a specified offset", kDiscardDetails},
    Command{"flush", "f", run_flush, 0, 0, false, 0, nullptr,
            "flush all in-core file state to disk", nullptr},
    Command{"help", "?", run_help, 0, 1, true, 0, "[command]", "help for one or all commands",
            nullptr},
    Command{"info", "i", run_info, 0, 0, false, 0, nullptr,
            "prints information about the current file", nullptr},
    Command{"length", "l", run_length, 0, 0, false, 0, nullptr,
            "gets the length of the current file", nullptr},
    Command{"map", "", run_map, 0, 0, false, 0, "", "prints the allocated areas of a file",
            nullptr},
    Command{"open", "o", run_open, 1, -1, true, 0,
            "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
            "open the file specified by path", kOpenDetails},
    Command{"quit", "q", run_quit, 0, -1, true, 0, nullptr, "exit the program", nullptr},
    Command{"read", "r", run_read, 2, -1, false, 0,
            "[-abCqv] [-P pattern [-s off] [-l len]] off len",
            "reads a number of bytes at a specified offset", kReadDetails},
    Command{"readv", "", run_readv, 2, -1, false, 0, "[-Cqv] [-P pattern] off len [len..]",
            "reads a number of bytes at a specified offset", kReadvDetails},
    Command{"remove_break", "", run_remove_break, 1, 1, false, 0, "tag",
            "remove a breakpoint by tag", nullptr},
    Command{"reopen", "", run_reopen, 0, -1, false, 0, "[(-r|-w)] [-c cache] [-o options]",
            "reopens an image with new options", kReopenDetails},
    Command{"resume", "", run_resume, 1, 1, false, 0, "tag", "resumes the request tagged as tag",
            nullptr},
    Command{"sigraise", "", run_sigraise, 1, 1, true, 0, "signal", "raises a signal",
            kSigraiseDetails},
    Command{"sleep", "", run_sleep, 1, 1, true, 0, nullptr,
            "waits for the given value in milliseconds", nullptr},
    Command{"truncate", "t", run_truncate, 1, 3, false, kTruncate, "[-m prealloc_mode] off",
            "truncates the current file at the given offset", nullptr},
    Command{"wait_break", "", run_wait_break, 1, 1, false, 0, "tag",
            "waits for the suspension of a request", nullptr},
    Command{"write", "w", run_write, 2, -1, false, kWrite,
            "[-bcCfnquz] [-P pattern | -s source_file] off len",
            "writes a number of bytes at a specified offset", kWriteDetails},
    Command{"writev", "", run_writev, 2, -1, false, kWrite, "[-Cfq] [-P pattern] off len [len..]",
            "writes a number of bytes at a specified offset", kWritevDetails},
};

// The words of `line`, which are cut out of it in place. Only blanks separate.
std::vector<char*> split(std::string& line) {
  std::vector<char*> words;
  for (std::size_t at = 0; (at = line.find_first_not_of(' ', at)) != std::string::npos;) {
    words.push_back(line.data() + at);
    at = line.find(' ', at);
    if (at == std::string::npos) break;
    line[at++] = '\0';
  }
  return words;
}

// `name` as the user spelled it.
bool check_count(const Command& command, std::string_view name, int count) {
  if (count >= command.least_arguments &&
      (command.most_arguments == -1 || count <= command.most_arguments)) {
    return true;
  }
  std::string expected;
  if (command.most_arguments == -1) {
    expected = fmt::format("at least {}", command.least_arguments);
  } else if (command.least_arguments == command.most_arguments) {
    expected = fmt::format("{}", command.least_arguments);
  } else {
    expected = fmt::format("between {} and {}", command.least_arguments, command.most_arguments);
  }
  fmt::print(stderr, "bad argument count {} to {}, expected {} arguments\n", count, name, expected);
  return false;
}

}  // namespace

std::span<const Command> commands() { return kCommands; }

const Command* find_command(std::string_view name) {
  const auto found = std::ranges::find_if(kCommands, [&](const Command& command) {
    return command.name == name || (!command.alias.empty() && command.alias == name);
  });
  return found == kCommands.end() ? nullptr : &*found;
}

void print_summary(const Command& command, std::string_view name) {
  if (command.synopsis != nullptr) {
    print("{} {} -- {}\n", name, command.synopsis, command.summary);
  } else {
    print("{} -- {}\n", name, command.summary);
  }
}

bool usage_error(const Arguments& arguments) {
  if (const Command* command = find_command(arguments.words[0]))
    print_summary(*command, command->name);
  return false;
}

Task<bool> run_line(Session& session, std::string line) {
  std::vector<char*> words = split(line);
  if (words.empty()) co_return true;
  const Command* command = find_command(words[0]);
  if (command == nullptr) {
    fmt::print(stderr, "command \"{}\" not found\n", words[0]);
    co_return false;
  }
  if (!command->works_closed && !session.is_open()) {
    fmt::print(stderr, "no file open, try 'help open'\n");
    co_return false;
  }
  const int count = static_cast<int>(words.size());
  if (!check_count(*command, words[0], count - 1)) co_return false;
  if (command->permissions != 0) {
    auto granted = co_await session.need_permissions(command->permissions);
    if (!granted) co_return false;
  }
  // getopt() wants a null pointer behind the last word.
  words.push_back(nullptr);
  const Arguments arguments{.count = count, .words = words.data()};
  auto succeeded = co_await command->run(session, arguments);
  session.note_halted();
  co_return succeeded;
}

}  // namespace platter::io_tool

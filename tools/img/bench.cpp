// bench: sends requests of one size at a fixed distance to an image and tells how long they took.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <vector>

#include "block/exec/buffer.h"
#include "tools/img/commands.h"
#include "tools/img/common.h"

namespace platter::img {
namespace {

constexpr std::uint64_t kMostCount = std::numeric_limits<int>::max();

struct BenchArguments {
  CommonOptions common;
  std::string filename;
  std::uint64_t count = 75000;
  std::uint64_t depth = 64;
  std::uint64_t offset = 0;
  std::uint64_t size = 4096;  // of a request, in bytes
  std::uint64_t step = 0;     // 0: the size
  std::uint64_t pattern = 0;
  std::uint64_t flush_interval = 0;  // 0: no flushes
  bool drain = true;                 // before a flush
  bool write = false;
  bool native = false;  // what the peer needs O_DIRECT for is refused without it here too
};

class Bench {
 public:
  Bench(BlockNode& image, const BenchArguments& arguments)
      : image_(image),
        arguments_(arguments),
        step_(arguments.step != 0 ? arguments.step : arguments.size),
        offset_(arguments.offset),
        pattern_(arguments.write ? arguments.size : 0),
        unsent_(arguments.count) {
    if (pattern_.size() == 0) return;
    std::memset(pattern_.data(), static_cast<int>(arguments.pattern), pattern_.size());
  }

  // Sends all; false: a request failed, which has been reported.
  Task<bool> run();

 private:
  Task<void> send_group();
  Task<void> send_one_by_one();
  void flush_meanwhile();
  void fail_with(std::string_view what, const Error& error);
  std::uint64_t next_offset();

  BlockNode& image_;
  const BenchArguments& arguments_;
  const std::uint64_t step_;
  std::uint64_t offset_;  // of the next request
  const Buffer pattern_;  // what is written
  std::uint64_t unsent_;  // requests
  std::uint64_t unsent_in_group_ = 0;
  std::vector<Task<Result<void>>> flushes_;  // those that run beside the requests
  bool failed_ = false;
};

void Bench::fail_with(std::string_view what, const Error& error) {
  if (!failed_) report_about(arguments_.filename, "{}: {}", what, errno_text(error.code()));
  failed_ = true;
}

std::uint64_t Bench::next_offset() {
  const std::uint64_t offset = offset_;
  const std::uint64_t size = image_.size();
  offset_ = size == 0 ? 0 : (offset_ + step_) % size;
  return offset;
}

// Starts a flush and looks after those that have ended.
void Bench::flush_meanwhile() {
  std::erase_if(flushes_, [&](Task<Result<void>>& task) {
    if (!task.done()) return false;
    const Result<void> flushed = task.take();
    if (!flushed) fail_with("Failed flush request", flushed.error());
    return true;
  });
  flushes_.push_back(image_.flush());
}

// One of the requests in flight, again and again.
Task<void> Bench::send_one_by_one() {
  const Buffer own(arguments_.write ? 0 : arguments_.size);
  const IoVec iov = arguments_.write ? pattern_.iov() : own.iov();
  while (unsent_in_group_ != 0 && !failed_) {
    --unsent_;
    --unsent_in_group_;
    const std::uint64_t offset = next_offset();
    if (const std::uint64_t size = image_.size(); offset > size || iov.size() > size - offset) {
      fail_with("Failed request", Error::from_errno(EIO));
      break;
    }
    auto request = arguments_.write ? image_.write(offset, iov) : image_.read(offset, iov);
    const Result<void> done = co_await request;
    if (!done) fail_with("Failed request", done.error());
    const std::uint64_t interval = arguments_.flush_interval;
    if (interval != 0 && !arguments_.drain && unsent_ != 0 && unsent_ % interval == 0) {
      flush_meanwhile();
    }
  }
}

Task<void> Bench::send_group() {
  std::vector<Task<void>> in_flight;
  const std::uint64_t depth = std::min(arguments_.depth, unsent_in_group_);
  while (in_flight.size() < depth && unsent_in_group_ != 0) in_flight.push_back(send_one_by_one());
  for (Task<void>& task : in_flight) co_await task;
}

Task<bool> Bench::run() {
  const std::uint64_t interval = arguments_.flush_interval;
  while (unsent_ != 0 && !failed_) {
    unsent_in_group_ = unsent_;
    if (interval != 0 && arguments_.drain) unsent_in_group_ = (unsent_ - 1) % interval + 1;
    co_await send_group();
    if (interval == 0 || !arguments_.drain || unsent_ == 0 || failed_) continue;
    auto flush = image_.flush();
    const Result<void> flushed = co_await flush;
    if (!flushed) fail_with("Failed request", flushed.error());
  }
  for (Task<Result<void>>& task : flushes_) {
    const Result<void> flushed = co_await task;
    if (!flushed) fail_with("Failed flush request", flushed.error());
  }
  co_return !failed_;
}

// Whether the file at the bottom is read and written past the page cache.
bool is_direct(BlockNode& top) {
  BlockNode* node = &top;
  while (BlockNode* below = node->storage()) node = below;
  return node->flags().direct;
}

Task<bool> time_requests(BlockNode& image, BenchArguments arguments) {
  if (arguments.native && !is_direct(image)) {
    report(
        "Could not open '{}': aio=native was specified, but it requires cache.direct=on, which was "
        "not specified.",
        arguments.filename);
    co_return false;
  }
  print(fmt::format(
      "Sending {} {} requests, {} bytes each, {} in parallel (starting at offset {}, step size "
      "{})\n",
      arguments.count, arguments.write ? "write" : "read", arguments.size, arguments.depth,
      arguments.offset, arguments.step != 0 ? arguments.step : arguments.size));
  if (arguments.flush_interval != 0) {
    print(fmt::format("Sending flush every {} requests\n", arguments.flush_interval));
  }
  Bench bench(image, arguments);
  const auto start = std::chrono::steady_clock::now();
  const bool sent = co_await bench.run();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (sent) print(fmt::format("Run completed in {:3.3f} seconds.\n", seconds.count()));
  co_return sent;
}

Task<int> bench(BenchArguments arguments) {
  OpenSpec spec = arguments.common.spec(arguments.filename);
  spec.flags.read_only = !arguments.write;
  Result<Edge> image = co_await open_image(std::move(spec));
  if (!image) co_return report_failure(image);
  const bool sent = co_await time_requests(**image, arguments);
  co_return co_await close_image(*image, arguments.filename, sent ? 0 : 1);
}

// Takes one option. False: it will not do, which has been reported.
bool take(BenchArguments& b, const Option& option) {
  if (OpenFlags ignored; option.id == 't' && !parse_cache(option.value, ignored)) {
    report("Invalid cache mode");
    return false;
  }
  if (const CommonOptions::Taken taken = b.common.take(option); taken.taken) return !taken.failed;
  // What a number option says goes to `into`.
  const auto number = [&](std::uint64_t& into, const char* what, std::uint64_t most) {
    const auto parsed = parse_bounded_number(option.value, what, 0, most);
    if (parsed) into = *parsed;
    return parsed.has_value();
  };
  const auto bytes = [&](std::uint64_t& into, const char* what, std::uint64_t most) {
    const auto parsed = parse_bounded_size(option.value, what, 0, most);
    if (parsed) into = *parsed;
    return parsed.has_value();
  };
  switch (option.id) {
    case 'c':
      return number(b.count, "request count", kMostCount);
    case 'd':
      return number(b.depth, "queue depth", kMostCount);
    case 'o':
      return bytes(b.offset, "offset", kMostBytes);
    case 's':
      return bytes(b.size, "buffer size", kMostCount);
    case 'S':
      return bytes(b.step, "step_size", kMostCount);
    case kPattern:
      return number(b.pattern, "pattern byte", 0xFF);
    case kFlushInterval:
      return number(b.flush_interval, "flush interval", kMostCount);
    case 'n':
      b.native = true;
      break;
    case 'w':
      b.write = true;
      break;
    case kNoDrain:
      b.drain = false;
      break;
    case 'i':
      // Every request goes the way that is best here, whatever the name.
      if (option.value == "native") b.native = true;
      if (option.value == "native" || option.value == "threads" || option.value == "io_uring")
        break;
      report("Invalid aio option: {}", option.value);
      return false;
    default:
      break;
  }
  return true;
}

// What the options say together. False: reported.
bool consistent(const BenchArguments& b) {
  const char* complaint = nullptr;
  if (b.common.image_opts && b.common.format) {
    complaint = "--image-opts and --format are mutually exclusive";
  } else if (!b.write && b.flush_interval != 0) {
    complaint = "--flush-interval is only available in write tests";
  } else if (b.flush_interval != 0 && b.flush_interval < b.depth) {
    complaint = "Flush interval can't be smaller than depth";
  } else if (b.depth == 0 && b.count != 0) {
    complaint = "Invalid queue depth specified";
  }
  if (complaint != nullptr) report_text(complaint);
  return complaint == nullptr;
}

}  // namespace

int run_bench(int argc, char** argv) {
  static constexpr Flag kFlags[] = {{'h', "help"},
                                    {'c', nullptr, true},
                                    {'d', nullptr, true},
                                    {'f', nullptr, true},
                                    {'n', nullptr},
                                    {'i', nullptr, true},
                                    {'o', nullptr, true},
                                    {'q', nullptr},
                                    {'s', nullptr, true},
                                    {'S', nullptr, true},
                                    {'t', nullptr, true},
                                    {'w', nullptr},
                                    {'U', "force-share"},
                                    {kFlushInterval, "flush-interval", true},
                                    {kPattern, "pattern", true},
                                    {kNoDrain, "no-drain"},
                                    {kImageOpts, "image-opts"}};
  BenchArguments bench_arguments;
  Arguments arguments(argc, argv, kFlags);
  while (const std::optional<Option> option = arguments.next()) {
    if (option->id == 'h') return print_help();
    if (!take(bench_arguments, *option)) return 1;
  }
  if (arguments.failed()) return 1;
  const std::vector<std::string> rest = arguments.rest();
  if (rest.size() != 1) return usage_error("Expecting one image file name");
  bench_arguments.filename = rest[0];
  if (!consistent(bench_arguments)) return 1;
  return finish_output(run_to_end([&] { return bench(bench_arguments); }));
}

}  // namespace platter::img

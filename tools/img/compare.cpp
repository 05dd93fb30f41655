// compare: whether two images show the same.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "block/exec/buffer.h"
#include "block/exec/sync.h"
#include "tools/img/commands.h"
#include "tools/img/common.h"
#include "tools/img/progress.h"

namespace platter::img {
namespace {

// Exit statuses.
constexpr int kDiffer = 1;
constexpr int kOpenFailed = 2;
constexpr int kStatusFailed = 3;
constexpr int kReadFailed = 4;

// Both buffers together stay in the processor's cache.
constexpr std::uint64_t kChunk = std::uint64_t{256} << 10;
constexpr unsigned kWorkers = 8;

struct CompareArguments {
  CommonOptions common;
  std::string filenames[2];
  std::optional<std::string> formats[2];
  bool strict = false;
};

// Offset of the first sector in which the two differ, or their size.
std::size_t first_difference(std::span<const std::byte> a, std::span<const std::byte> b) {
  if (std::memcmp(a.data(), b.data(), a.size()) == 0) return a.size();
  std::size_t at = 0;
  while (std::memcmp(&a[at], &b[at], std::min(kSector, a.size() - at)) == 0) at += kSector;
  return at;
}
std::size_t first_nonzero(std::span<const std::byte> bytes) {
  if (is_zero(bytes)) return bytes.size();
  std::size_t at = 0;
  while (is_zero(bytes.subspan(at, std::min(kSector, bytes.size() - at)))) at += kSector;
  return at;
}

// Whether the bytes of the disk are somewhere as they are: packed ones are not.
bool has_place(const ChainExtent& extent) {
  return extent.host_offset != Extent::kNoHost && extent.node != nullptr && !extent.compressed;
}

// Walks both images; several workers look at pieces at once, and the finding with the lowest offset
// is the answer.
class Comparison {
 public:
  Comparison(BlockNode& first, BlockNode& second, bool strict, Progress& progress)
      : nodes_{&first, &second},
        common_(std::min(first.size(), second.size())),
        total_(std::max(first.size(), second.size())),
        longer_(first.size() >= second.size() ? 0 : 1),
        strict_(strict),
        progress_(progress) {}

  struct Finding {
    std::uint64_t offset = ~std::uint64_t{0};
    int status = 0;
    std::string message;
    bool is_error = false;  // for standard error
  };

  // Compares [from, to); beyond the shorter image, the longer one has to be zero.
  Task<Finding> run(std::uint64_t from, std::uint64_t to) {
    position_ = from;
    end_ = to;
    std::vector<Task<void>> workers;
    for (unsigned i = 0; i < kWorkers; ++i) workers.push_back(work());
    for (Task<void>& worker : workers) co_await worker;
    co_return finding_;
  }

 private:
  enum class How : std::uint8_t { kEqual, kBoth, kFirstIsZero, kSecondIsZero };
  struct Piece {
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
    How how = How::kEqual;
  };

  void found(std::uint64_t offset, int status, std::string message, bool is_error) {
    if (offset < finding_.offset) finding_ = {offset, status, std::move(message), is_error};
    end_ = std::min(end_, position_);  // no further pieces
  }

  Task<bool> look_up(unsigned which) {
    ChainExtent& extent = extents_[which];
    if (extent.length != 0 && extent.offset + extent.length > position_) co_return true;
    const Result<ChainExtent> next = co_await chain_extent(*nodes_[which], nullptr, position_,
                                                           nodes_[which]->size() - position_);
    if (!next) {
      found(position_, kStatusFailed,
            fmt::format("Sector allocation test failed for image {}: {}", which + 1,
                        next.error().message()),
            true);
      co_return false;
    }
    extent = *next;
    extent.offset = position_;
    co_return true;
  }

  std::uint64_t left(unsigned which) const {
    return extents_[which].offset + extents_[which].length - position_;
  }

  Task<std::optional<Piece>> next_piece() {
    const AsyncMutex::Guard guard = co_await walk_mutex_.lock();
    if (position_ >= end_) co_return std::nullopt;
    Piece piece{.offset = position_, .length = end_ - position_, .how = How::kEqual};
    if (position_ < common_) {
      const bool first_known = co_await look_up(0);
      const bool second_known = first_known && co_await look_up(1);
      if (!second_known) co_return std::nullopt;
      const ChainExtent& a = extents_[0];
      const ChainExtent& b = extents_[1];
      piece.length = std::min({piece.length, left(0), left(1)});
      if (strict_ && (a.zero != b.zero || a.data != b.data || a.present != b.present ||
                      has_place(a) != has_place(b))) {
        found(position_, kDiffer,
              fmt::format("Strict mode: Offset {} block status mismatch!", position_), false);
        co_return std::nullopt;
      }
      const bool a_zero = a.zero || !a.present;
      const bool b_zero = b.zero || !b.present;
      if (a_zero && b_zero) {
        piece.how = How::kEqual;
      } else {
        piece.how = a_zero ? How::kFirstIsZero : b_zero ? How::kSecondIsZero : How::kBoth;
      }
    } else {
      const bool known = co_await look_up(longer_);
      if (!known) co_return std::nullopt;
      piece.length = std::min(piece.length, left(longer_));
      const bool zero = extents_[longer_].zero || !extents_[longer_].present;
      if (!zero) piece.how = longer_ == 0 ? How::kSecondIsZero : How::kFirstIsZero;
    }
    if (piece.how != How::kEqual)
      piece.length = std::min(piece.length, kChunk - piece.offset % kChunk);
    position_ += piece.length;
    progress_.update(position_, total_);
    co_return piece;
  }

  // Reads a piece of one image; nothing when that failed.
  Task<bool> read(unsigned which, std::uint64_t offset, std::span<std::byte> bytes) {
    const Result<void> result = co_await nodes_[which]->read(offset, IoVec(bytes));
    if (!result) {
      found(offset, kReadFailed,
            fmt::format("Error while reading offset {} of {}: {}", offset,
                        nodes_[which]->filename(), result.error().message()),
            true);
    }
    co_return result.has_value();
  }

  Task<void> work() {
    Buffer buffers[2];
    for (;;) {
      const std::optional<Piece> next = co_await next_piece();
      if (!next) co_return;
      const Piece piece = *next;
      if (piece.how == How::kEqual) continue;
      bool good = true;
      for (unsigned which = 0; which < 2 && good; ++which) {
        if (piece.how == (which == 0 ? How::kFirstIsZero : How::kSecondIsZero)) continue;
        if (buffers[which].size() == 0) buffers[which] = Buffer(kChunk);
        good = co_await read(which, piece.offset, buffers[which].span(0, piece.length));
      }
      if (!good) co_return;
      const auto bytes = [&](unsigned which) { return buffers[which].span(0, piece.length); };
      const std::size_t same = piece.how == How::kBoth ? first_difference(bytes(0), bytes(1))
                               : piece.how == How::kFirstIsZero ? first_nonzero(bytes(1))
                                                                : first_nonzero(bytes(0));
      if (same < piece.length) {
        found(piece.offset + same, kDiffer,
              fmt::format("Content mismatch at offset {}!", piece.offset + same), false);
      }
    }
  }

  BlockNode* const nodes_[2];
  const std::uint64_t common_;
  const std::uint64_t total_;
  const unsigned longer_;
  const bool strict_;
  Progress& progress_;
  AsyncMutex walk_mutex_;
  std::uint64_t position_ = 0;
  std::uint64_t end_ = 0;
  ChainExtent extents_[2];  // what was last looked up
  Finding finding_;
};

int tell(const Comparison::Finding& finding, bool quiet) {
  if (finding.is_error) {
    report_text(finding.message);
  } else if (!quiet) {
    print(finding.message + "\n");
  }
  return finding.status;
}

Task<int> compare_nodes(BlockNode& first, BlockNode& second, const CompareArguments& arguments,
                        Progress& progress) {
  const bool quiet = arguments.common.quiet;
  progress.start();
  const std::uint64_t shorter = std::min(first.size(), second.size());
  const std::uint64_t longer = std::max(first.size(), second.size());
  if (arguments.strict && shorter != longer) {
    if (!quiet) print("Strict mode: Image size mismatch!\n");
    co_return kDiffer;
  }
  Comparison both(first, second, arguments.strict, progress);
  const Comparison::Finding in_both = co_await both.run(0, shorter);
  if (in_both.status != 0) co_return tell(in_both, quiet);
  if (shorter != longer) {
    if (!quiet) print("Warning: Image size mismatch!\n");
    Comparison rest(first, second, false, progress);
    const Comparison::Finding beyond = co_await rest.run(shorter, longer);
    if (beyond.status != 0) co_return tell(beyond, quiet);
  }
  if (!quiet) print("Images are identical.\n");
  co_return 0;
}

Task<int> compare(CompareArguments arguments) {
  Edge images[2];
  Progress progress(arguments.common.progress && !arguments.common.quiet);
  int status = 0;
  for (unsigned i = 0; i < 2 && status == 0; ++i) {
    OpenSpec spec = arguments.common.spec(arguments.filenames[i]);
    spec.format = arguments.formats[i];
    spec.cache = arguments.common.source_cache;
    Result<Edge> opened = co_await open_image(std::move(spec));
    if (opened) {
      images[i] = std::move(*opened);
    } else {
      report_failure(opened);
      status = kOpenFailed;
    }
  }
  if (status == 0) status = co_await compare_nodes(*images[0], *images[1], arguments, progress);
  for (Edge& image : images) {
    if (!image) continue;
    const Result<void> closed = co_await image.detach();
    if (!closed) report_failure(closed);
  }
  co_return status;
}

}  // namespace

int run_compare(int argc, char** argv) {
  static constexpr Flag kFlags[] = {{'h', "help"},
                                    {'f', nullptr, true},
                                    {'F', nullptr, true},
                                    {'T', nullptr, true},
                                    {'p', nullptr},
                                    {'q', nullptr},
                                    {'s', nullptr},
                                    {'U', "force-share"},
                                    {kObject, "object", true},
                                    {kImageOpts, "image-opts"}};
  CompareArguments compare_arguments;
  CommonOptions& common = compare_arguments.common;
  VerbArguments arguments(argc, argv, kFlags, common, kOpenFailed);
  while (const std::optional<Option> option = arguments.next()) {
    if (option->id == 's') compare_arguments.strict = true;
    if (option->id == 'F') compare_arguments.formats[1] = option->value;
  }
  if (const auto status = arguments.ended()) return *status;
  const std::vector<std::string> rest = arguments.rest();
  if (rest.size() != 2) return usage_error("Expecting two image file names");
  if (!common.agree()) return kOpenFailed;
  if (common.image_opts && compare_arguments.formats[1]) {
    report("--image-opts and --format are mutually exclusive");
    return kOpenFailed;
  }
  compare_arguments.formats[0] = common.format;
  compare_arguments.filenames[0] = rest[0];
  compare_arguments.filenames[1] = rest[1];
  return finish_output(run_to_end([&] { return compare(compare_arguments); }));
}

}  // namespace platter::img

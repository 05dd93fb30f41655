// rebase: puts an image on another backing file.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "block/exec/buffer.h"
#include "tools/img/commands.h"
#include "tools/img/common.h"
#include "tools/img/progress.h"

namespace platter::img {
namespace {

constexpr std::uint64_t kSector = 512;
constexpr std::uint64_t kChunk = std::uint64_t{1} << 20;

struct RebaseArguments {
  CommonOptions common;
  std::string filename;
  std::optional<std::string> backing_file;
  std::optional<std::string> backing_format;
  bool unsafe = false;
};

// Reads a range of what may be shorter, or not there at all: zeroes follow its end.
Task<Result<void>> read_padded(BlockNode* node, std::uint64_t offset, std::span<std::byte> bytes) {
  const std::uint64_t size = node == nullptr ? 0 : node->size();
  const std::uint64_t stored =
      offset < size ? std::min<std::uint64_t>(bytes.size(), size - offset) : 0;
  if (stored != 0) {
    const Result<void> read = co_await node->read(offset, IoVec(bytes.first(stored)));
    if (!read)
      co_return forward_error(read, "error while reading from {} at byte {}", node->filename(),
                              offset);
  }
  std::ranges::fill(bytes.subspan(stored), std::byte{0});
  co_return {};
}

// Writes to `top` the sectors at `offset` in which `before` and `after` differ.
Task<Result<void>> write_differences(BlockNode& top, std::uint64_t offset,
                                     std::span<std::byte> before,
                                     std::span<const std::byte> after) {
  const auto differs = [&](std::size_t at) {
    const std::size_t n = std::min<std::size_t>(kSector, before.size() - at);
    return std::memcmp(&before[at], &after[at], n) != 0;
  };
  if (std::memcmp(before.data(), after.data(), before.size()) == 0) co_return {};
  for (std::size_t at = 0; at < before.size();) {
    const std::size_t start = at;
    const bool write = differs(at);
    while (at < before.size() && differs(at) == write) at += kSector;
    if (!write) continue;
    const std::size_t length = std::min(at, before.size()) - start;
    const WriteFlags flags{.unchanged = true};
    const Result<void> written =
        co_await top.write(offset + start, IoVec(before.subspan(start, length)), flags);
    if (!written)
      co_return forward_error(written, "Error while writing to COW image at byte {}",
                              offset + start);
  }
  co_return {};
}

// Copies into `top` what it shows from `before` and would not show from `after`.
Task<Result<void>> keep_contents(BlockNode& top, BlockNode* before, BlockNode* after,
                                 Progress& progress) {
  const Buffer old_data(kChunk);
  const Buffer new_data(kChunk);
  const std::uint64_t size = top.size();
  for (std::uint64_t at = 0; at < size;) {
    const Result<Extent> own = co_await top.extent(at, size - at);
    if (!own) co_return forward_error(own, "error while reading image metadata");
    const std::uint64_t end = at + own->length;
    while (at < end && own->kind == ExtentKind::kUnallocated) {
      const std::uint64_t length = std::min(end - at, kChunk);
      const Result<void> read_old = co_await read_padded(before, at, old_data.span(0, length));
      PLATTER_CO_TRY(read_old);
      const Result<void> read_new = co_await read_padded(after, at, new_data.span(0, length));
      PLATTER_CO_TRY(read_new);
      const Result<void> written =
          co_await write_differences(top, at, old_data.span(0, length), new_data.span(0, length));
      PLATTER_CO_TRY(written);
      at += length;
      progress.update(at, size);
    }
    at = end;
    progress.update(at, size);
  }
  co_return {};
}

// The image below `top` that `filename` names in full; nullptr: none.
BlockNode* in_chain(BlockNode& top, const std::string& filename) {
  for (BlockNode* node = top.backing(); node != nullptr; node = node->backing()) {
    if (node->filename() == filename) return node;
  }
  return nullptr;
}

Task<Result<void>> change_reference(BlockNode& top, const RebaseArguments& arguments) {
  const std::string name = arguments.backing_file.value_or("");
  BackingAbility* reference = top.driver().backing_reference();
  Result<void> changed = fail_errno(ENOTSUP);
  if (reference != nullptr) {
    if (!name.empty() && !arguments.backing_format) {
      changed = fail(EINVAL, "backing format must be specified");
    } else {
      std::string format;
      if (!name.empty()) format = *arguments.backing_format;
      changed = co_await reference->change_backing(name, format);
    }
  }
  if (changed) co_return {};
  if (changed.error().code() == ENOSPC) changed = fail(ENOSPC, "No space left in the file header");
  co_return forward_error(changed, "Could not change the backing file to '{}'", name);
}

Task<Result<void>> rebase_node(BlockNode& top, const RebaseArguments& arguments) {
  if (arguments.unsafe) {
    const Result<void> changed = co_await change_reference(top, arguments);
    co_return changed;
  }
  Edge opened;
  BlockNode* after = nullptr;
  const std::string name = arguments.backing_file.value_or("");
  if (!name.empty()) {
    const Result<std::string> full = resolve_backing(top.filename(), name);
    PLATTER_CO_TRY(full);
    after = in_chain(top, *full);
    if (after == nullptr) {
      OpenSpec spec;
      spec.filename = *full;
      spec.format = arguments.backing_format;
      spec.cache = arguments.common.source_cache;
      spec.flags.force_share = arguments.common.force_share;
      Result<Edge> edge = co_await open_image(std::move(spec));
      if (!edge) {
        co_return forward_error(edge, "Could not open new backing file '{}'", name);
      }
      opened = std::move(*edge);
      after = opened.get();
    }
  }
  Result<void> result;
  {
    Progress progress(arguments.common.progress && !arguments.common.quiet);
    progress.start();
    if (after == nullptr || after != top.backing()) {
      result = co_await keep_contents(top, top.backing(), after, progress);
    }
    if (result) result = co_await top.flush();
    if (result) result = co_await change_reference(top, arguments);
    if (result) progress.finish();
  }
  if (opened) {
    const Result<void> closed = co_await opened.detach();
    if (result && !closed) result = closed;
  }
  co_return result;
}

Task<int> rebase(RebaseArguments arguments) {
  OpenSpec spec;
  spec.filename = arguments.filename;
  spec.format = arguments.common.format;
  spec.image_opts = arguments.common.image_opts;
  spec.cache = arguments.common.cache;
  spec.flags.read_only = false;
  spec.flags.no_backing = arguments.unsafe;
  Result<Edge> image = co_await open_image(std::move(spec));
  if (!image) co_return report_failure(image);
  if (arguments.backing_format && find_driver(*arguments.backing_format) == nullptr) {
    report("Invalid format name: '{}'", *arguments.backing_format);
    const Result<void> closed = co_await image->detach();
    co_return closed ? 1 : report_failure(closed);
  }
  Result<void> result = co_await rebase_node(**image, arguments);
  const Result<void> closed = co_await image->detach();
  if (result && !closed) result = closed;
  if (!result) co_return report_failure(result);
  co_return 0;
}

}  // namespace

int run_rebase(int argc, char** argv) {
  static constexpr Flag kFlags[] = {{'h', "help"},
                                    {'f', nullptr, true},
                                    {'F', nullptr, true},
                                    {'b', nullptr, true},
                                    {'u', nullptr},
                                    {'p', nullptr},
                                    {'q', nullptr},
                                    {'t', nullptr, true},
                                    {'T', nullptr, true},
                                    {'U', "force-share"},
                                    {kObject, "object", true},
                                    {kImageOpts, "image-opts"}};
  RebaseArguments rebase_arguments;
  CommonOptions& common = rebase_arguments.common;
  Arguments arguments(argc, argv, kFlags);
  while (const std::optional<Option> option = arguments.next()) {
    if (common.take(*option).failed) return 1;
    switch (option->id) {
      case 'h':
        return print_help();
      case 'F':
        rebase_arguments.backing_format = option->value;
        break;
      case 'b':
        rebase_arguments.backing_file = option->value;
        break;
      case 'u':
        rebase_arguments.unsafe = true;
        break;
      default:
        break;
    }
  }
  if (arguments.failed()) return 1;
  const std::vector<std::string> rest = arguments.rest();
  if (rest.size() != 1) return usage_error("Expecting one image file name");
  if (!rebase_arguments.unsafe && !rebase_arguments.backing_file) {
    return usage_error("Must specify backing file (-b) or use unsafe mode (-u)");
  }
  if (!common.agree()) return 1;
  rebase_arguments.filename = rest[0];
  return finish_output(run_to_end([&] { return rebase(rebase_arguments); }));
}

}  // namespace platter::img

// map: where the data of an image lies.
#include <fmt/format.h>

#include "tools/img/commands.h"
#include "tools/img/common.h"

namespace platter::img {
namespace {

struct MapArguments {
  CommonOptions common;
  std::string filename;
  std::uint64_t start = 0;
  std::optional<std::uint64_t> length;
};

// A run of extents that are alike, as one line shows it.
struct Entry {
  std::uint64_t start = 0;
  std::uint64_t length = 0;
  ChainExtent extent;

  bool has_offset() const { return extent.host_offset != Extent::kNoHost; }
  bool continues_as(const ChainExtent& next) const {
    const bool next_offset = next.host_offset != Extent::kNoHost;
    return extent.depth == next.depth && extent.present == next.present &&
           extent.zero == next.zero && extent.data == next.data && extent.node == next.node &&
           has_offset() == next_offset &&
           (!next_offset || extent.host_offset + length == next.host_offset);
  }
};

const std::string name_of(BlockNode& file) {
  const std::string plain = file.driver().exact_filename();
  return plain.empty() ? file.filename() : plain;
}

// A layer that leaves a range to one below it that is too short shows zeroes of its own making.
void attribute_to_shorter_backing(BlockNode& top, ChainExtent& extent) {
  if (extent.depth == 0 || !extent.present || extent.data || extent.node != nullptr) return;
  BlockNode* layer = &top.skip_filters();
  for (unsigned depth = 0; depth < extent.depth; ++depth) layer = &layer->backing()->skip_filters();
  if (extent.offset < layer->size()) return;
  extent.depth -= 1;
  extent.present = false;
}

class MapPrinter {
 public:
  MapPrinter(const std::string& image, OutputFormat format) : image_(image), format_(format) {
    if (format_ == OutputFormat::kHuman) {
      print(fmt::format("{:<16}{:<16}{:<16}{}\n", "Offset", "Length", "Mapped to", "File"));
    } else {
      print("[");
    }
  }

  // False when the entry cannot be shown, which has been reported.
  bool show(const Entry& entry, bool last) {
    if (format_ == OutputFormat::kJson) {
      std::string line = fmt::format(
          "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, "
          "\"data\": {}",
          entry.start, entry.length, entry.extent.depth, entry.extent.present, entry.extent.zero,
          entry.extent.data);
      if (entry.has_offset()) line += fmt::format(", \"offset\": {}", entry.extent.host_offset);
      print(line + (last ? "}]\n" : "},\n"));
      return true;
    }
    if (!entry.extent.data || entry.extent.zero) return true;
    if (!entry.has_offset() || entry.extent.node == nullptr) {
      report_about(image_, "File contains external, encrypted or compressed clusters.");
      return false;
    }
    const auto number = [](std::uint64_t value) {
      return value == 0 ? "0" : fmt::format("{:#x}", value);
    };
    print(fmt::format("{:<16}{:<16}{:<16}{}\n", number(entry.start), number(entry.length),
                      number(entry.extent.host_offset), name_of(*entry.extent.node)));
    return true;
  }

 private:
  const std::string& image_;
  const OutputFormat format_;
};

Task<int> show_map(MapArguments arguments) {
  Result<Edge> image = co_await open_image(arguments.common.spec(arguments.filename));
  if (!image) co_return report_failure(image);

  MapPrinter printer(arguments.filename, arguments.common.output);
  const std::uint64_t size = (*image)->size();
  const std::uint64_t end =
      arguments.length && *arguments.length < size - std::min(arguments.start, size)
          ? arguments.start + *arguments.length
          : size;
  Entry entry{.start = arguments.start, .length = 0, .extent = {}};
  int status = 0;
  for (std::uint64_t at = arguments.start; at < end && status == 0;) {
    const Result<ChainExtent> extent = co_await chain_extent(**image, nullptr, at, end - at);
    if (!extent) {
      report_about(arguments.filename, "Failed to read image metadata: {}",
                   extent.error().message());
      status = 1;
      break;
    }
    const std::uint64_t length = std::min(extent->length, end - at);
    ChainExtent shown = *extent;
    attribute_to_shorter_backing(**image, shown);
    if (shown.compressed) {
      // Where the packed bytes are is of no use to who wants the plain ones.
      shown.node = nullptr;
      shown.host_offset = Extent::kNoHost;
    }
    if (entry.length != 0 && entry.continues_as(shown)) {
      entry.length += length;
    } else {
      if (entry.length != 0 && !printer.show(entry, false)) status = 1;
      entry = Entry{.start = at, .length = length, .extent = shown};
    }
    at += length;
  }
  if (status == 0 && !printer.show(entry, true)) status = 1;
  co_return co_await close_image(*image, arguments.filename, status);
}

}  // namespace

int run_map(int argc, char** argv) {
  static constexpr Flag kFlags[] = {{'h', "help"},
                                    {'f', "format", true},
                                    {kOutput, "output", true},
                                    {kObject, "object", true},
                                    {kImageOpts, "image-opts"},
                                    {'U', "force-share"},
                                    {'s', "start-offset", true},
                                    {'l', "max-length", true}};
  MapArguments map;
  VerbArguments arguments(argc, argv, kFlags, map.common);
  while (const std::optional<Option> option = arguments.next()) {
    if (option->id == 's') {
      const auto start = parse_bounded_size(option->value, "start offset", 0, kMostBytes);
      if (!start) return 1;
      map.start = *start;
    }
    if (option->id == 'l') {
      map.length = parse_bounded_size(option->value, "max length", 0, kMostBytes);
      if (!map.length) return 1;
    }
  }
  if (const auto status = arguments.ended()) return *status;
  const std::vector<std::string> rest = arguments.rest();
  if (rest.size() != 1) return usage_error("Expecting one image file name");
  if (!map.common.agree()) return 1;
  map.filename = rest[0];
  return finish_output(run_to_end([&] { return show_map(map); }));
}

}  // namespace platter::img

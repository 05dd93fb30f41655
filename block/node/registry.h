// The table of drivers. A driver registers itself from its own .cpp:
//
//   const RegisterDriver registered{DriverType{.name = "raw", ...}};
//
// Threads: registration before main(); lookups anywhere.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "block/node/driver.h"
#include "block/node/node.h"

namespace platter {

namespace detail {
struct OpenState;
}

// What a driver's open gets: its own options (it takes what it knows), and how to open children.
struct OpenContext {
  Options& options;
  OpenFlags flags;
  std::string node_name;  // this node's (given or made up)
  std::string filename;   // as the user named it; may be empty
  unsigned depth = 0;     // of the backing chain above this node
  // Opened below another node, which may write beyond the end; not for a user who sees a disk of
  // fixed size.
  bool as_storage = false;
  const detail::OpenState* state = nullptr;  // what the graph keeps while it opens

  // Opens (or looks up) the child named by option `name` ("file", "backing", "data-file") or by its
  // dotted keys, and attaches it with the role's usual rights. Fails when none is given.
  Task<Result<Edge>> open_child(std::string_view name, Permissions permissions);
  // Opens the backing node a header names: relative names are resolved against this image's
  // directory; `format` empty means probe (then the node is read-only). Honours flags.no_backing
  // and an explicit "backing" option ("backing": null spelled as an empty value: none). A chain
  // deeper than kMaxChain or that meets itself is refused.
  Task<Result<Edge>> open_backing(std::string stored_filename, std::string stored_format);
  static constexpr unsigned kMaxChain = 2000;
};

// An option of `create`, for -o help and for validation.
struct CreateOption {
  enum class Type : std::uint8_t { kString, kSize, kNumber, kBool };
  std::string_view name;
  Type type = Type::kString;
  std::string_view help;
  std::string_view default_text = {};
};

struct CreateRequest {
  std::string filename;
  std::uint64_t size = 0;  // bytes
  Options options;         // of create_options, validated for name and type
  // Those that only the ground-floor driver of `filename` knows (and `nocow`, say, is one): a
  // format hands them to create_protocol().
  Options protocol_options = {};
  // Where the external data file is made, if not by the name that the image keeps of it.
  std::string data_filename = {};
};

// What an image of this format would need for `size` bytes or to hold what `source` holds.
struct MeasureRequest {
  Options options;         // as for create
  std::uint64_t size = 0;  // bytes; used when there is no source
  BlockNode* source = nullptr;
};
struct MeasureResult {
  std::uint64_t required = 0;         // bytes of file
  std::uint64_t fully_allocated = 0;  // bytes of file when all is written
  std::optional<std::uint64_t> bitmaps;
};

struct DriverType {
  std::string_view name;
  // A ground-floor driver is opened by filename; a format has a "file" child.
  bool protocol = false;
  bool filter = false;
  // "nbd:", "http:"...: filenames starting with one of these are this driver's.
  std::vector<std::string_view> prefixes = {};
  bool supports_backing = false;
  // 0: not mine ... 100: certainly mine. `head` is the start of the file, 2 KiB or less.
  int (*probe)(std::span<const std::byte> head, std::string_view filename) = nullptr;
  Task<Result<std::unique_ptr<Driver>>> (*open)(OpenContext& context) = nullptr;

  std::span<const CreateOption> create_options = {};
  std::span<const CreateOption> amend_options = {};  // empty: nothing can be amended
  // Makes a new image. Nothing on disk has changed when it fails on bad options.
  Task<Result<void>> (*create)(CreateRequest request) = nullptr;
  Task<Result<MeasureResult>> (*measure)(MeasureRequest request) = nullptr;
};

struct RegisterDriver {
  explicit RegisterDriver(DriverType type);
};

// nullptr when there is none of that name.
const DriverType* find_driver(std::string_view name);
// All, sorted by name.
std::vector<const DriverType*> all_drivers();
// The ground-floor driver for a filename: by prefix, or "file" / "host_device" by what it is.
// nullptr when the prefix is nobody's.
const DriverType* protocol_for(std::string_view filename);
// "nbd" of "nbd:...", empty for a plain path.
std::string_view protocol_prefix(std::string_view filename);
// The path without a "file:" in front.
std::string_view local_path(std::string_view filename);

// The driver (among those that probe) which knows the start of a file best; nullptr: none.
const DriverType* probe_format(std::span<const std::byte> head, std::string_view filename);
// Bytes of the start that probes are shown.
inline constexpr std::size_t kProbeSize = 2048;

}  // namespace platter

// What the graph keeps while nodes are being opened: shared by open.cpp, open_child.cpp and
// open_options.cpp, seen by drivers only as a pointer in OpenContext.
//
// Threads: the control executor.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "block/node/graph.h"

namespace platter::detail {

// Which file a name stands for: by device and inode when there is such a file, else by the name.
struct FileIdentity {
  dev_t device = 0;
  ino_t inode = 0;
  std::string name;

  static FileIdentity of(const std::string& filename);
  bool operator==(const FileIdentity&) const = default;
};

// One node being opened, linked to the overlay it is opened for.
struct OpenState {
  const OpenState* overlay = nullptr;
  std::string base_name;  // the file below, for relative backing names
  FileIdentity identity;
  Edge* preopened = nullptr;  // the "file" child, when probing has opened it already
};

enum class Role : std::uint8_t { kUser, kStorage, kBacking };

struct NodeRequest {
  Options options;
  std::string
      format;  // when the options name no driver; empty: probe (or the protocol of the name)
  OpenFlags flags;
  Role role = Role::kUser;
  std::string display;
  unsigned depth = 0;
  const OpenState* overlay = nullptr;
};

Task<Result<NodePtr>> open_new_node(NodeRequest request);
Task<Result<void>> close_unattached(NodePtr node);

// Takes the options that every node has out of `options` into `flags`.
Result<void> take_common_options(Options& options, OpenFlags& flags);
// A filename, options beside it (which win) and a format in one set of options.
Result<Options> compose_options(const std::string& filename, const Options& beside,
                                std::string_view format);
// The name of the file at the bottom of a set of options, as far as it is spelled there.
std::string bottom_filename(const Options& options);

OpenFlags storage_flags(OpenFlags flags);
OpenFlags backing_flags(OpenFlags flags);

// Node names in use.
Result<void> check_node_name(std::string_view name);
std::string made_up_node_name();
void remember_node(const NodePtr& node);

}  // namespace platter::detail

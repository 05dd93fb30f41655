// Naming internal snapshots on the command line.
// Threads: values; coroutines run on the executor of the node that they are given.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "block/base/error.h"
#include "block/exec/task.h"
#include "block/node/node.h"

namespace platter::img {

// The value of -l: "snapshot.id=1,snapshot.name=x", or one text that is an id or a name.
struct SnapshotName {
  std::optional<std::string> id;
  std::optional<std::string> name;
  std::optional<std::string> either;
};

// Nothing (and a report) when the text cannot be understood.
std::optional<SnapshotName> parse_snapshot_name(std::string_view text);

// Makes a read-only node show a snapshot. Errors begin with "Failed to load snapshot: ".
Task<Result<void>> load_snapshot(BlockNode& node, SnapshotName name);

}  // namespace platter::img

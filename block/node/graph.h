// Opening, creating, reopening and naming nodes.
//
// Threads: one control executor at a time.
#pragma once

#include <string>
#include <string_view>

#include "block/base/error.h"
#include "block/exec/task.h"
#include "block/node/node.h"
#include "block/node/options.h"
#include "block/node/registry.h"

namespace platter {

struct OpenRequest {
  // Either a filename (plain or "json:{...}") ...
  std::string filename;
  // ... or options ("driver=qcow2,file.filename=x"); both: the options win over the filename's.
  Options options;
  // "qcow2", "raw", ...; empty: probe. A probed raw image is protected: writes that would make its
  // start look like another format are refused with an error that tells to name the format.
  std::string format;
  OpenFlags flags;
  Permissions permissions = Permissions::reader();
  std::string user = "user";  // for messages about conflicting rights
};

// Opens a node with all below it. Options that exist for every node: driver, node-name, read-only,
// auto-read-only, cache.direct, cache.no-flush, discard, detect-zeroes, force-share.
// Errors begin with "Could not open 'NAME': ".
Task<Result<Edge>> open_node(OpenRequest request);

// A node by its node-name, or nullptr.
NodePtr find_node(std::string_view node_name);

// Transaction::reopen() (transaction.h) by itself. A failure leaves everything as it was.
Task<Result<void>> reopen(BlockNode& node, OpenFlags flags);

// Makes an image of `format` with the text of -o ("a=b,c=d") and a size. Validates all options
// before anything on disk changes. `data_filename`: as in CreateRequest.
Task<Result<void>> create_image(std::string format, std::string filename, std::uint64_t size,
                                Options options, std::string data_filename = {});

// Makes (or empties) the file below a format by the protocol's own create: what a format's create
// calls first. The options are the protocol's.
Task<Result<void>> create_protocol(std::string filename, std::uint64_t size, Options options);

// Opens a filename with its protocol driver and nothing on top, as its only writer: what a format's
// create writes its metadata through.
Task<Result<Edge>> open_protocol(std::string filename, OpenFlags flags, std::string user);

// The hold that `node` has on its backing node; nullptr: it has none.
Edge* backing_edge(BlockNode& node);

// The backing name as stored in `overlay_filename`, made openable: absolute names, json: names and
// names with a protocol stay; relative ones are taken from the overlay's directory.
Result<std::string> resolve_backing(std::string_view overlay_filename, std::string_view stored);

}  // namespace platter

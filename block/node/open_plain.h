// open_node() for who names the image himself: its errors do not begin with "Could not open 'NAME'"
// unless that is all there is to say.
//
// Threads: as open_node().
#pragma once

#include "block/node/graph.h"

namespace platter {

Task<Result<Edge>> open_node_plain(OpenRequest request);

// What open_node() makes of such an error: "Could not open 'NAME': " is in front, unless the file's
// own driver has said so already.
Error not_opened(const std::string& name, const Error& why);

}  // namespace platter

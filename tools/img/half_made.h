// What becomes of a new image whose making was cancelled: nobody shall take it for a whole one.
//
// Threads: one.
#pragma once

#include <string>
#include <vector>

#include "block/node/node.h"

namespace platter::img {

// The local files that hold an image, without those of its backing chain.
std::vector<std::string> files_of(BlockNode& node);

// Removes those of the closed image `name` that are plain files, and says what is left: "the
// incomplete 'NAME' has been removed" or "'NAME' is incomplete". Nothing is removed when `made` is
// false: somebody else had made the image.
std::string end_half_made(const std::string& name, const std::vector<std::string>& files,
                          bool made);

}  // namespace platter::img

#include "tools/img/half_made.h"

#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/node/registry.h"

namespace platter::img {

std::vector<std::string> files_of(BlockNode& node) {
  std::vector<std::string> files;
  std::vector<BlockNode*> nodes{&node};
  while (!nodes.empty()) {
    BlockNode& one = *nodes.back();
    nodes.pop_back();
    if (one.driver_name() == "file") files.emplace_back(local_path(one.filename()));
    for (const Edge* child : one.driver().children()) {
      if (child != nullptr && *child && child->get() != one.backing()) nodes.push_back(child->get());
    }
  }
  return files;
}

std::string end_half_made(const std::string& name, const std::vector<std::string>& files,
                          bool made) {
  bool removed = made && !files.empty();
  for (const std::string& file : files) {
    struct stat about {};
    // (A link or a device is more than this image.)
    removed = removed && lstat(file.c_str(), &about) == 0 && S_ISREG(about.st_mode) &&
              unlink(file.c_str()) == 0;
  }
  return removed ? fmt::format("the incomplete '{}' has been removed", name)
                 : fmt::format("'{}' is incomplete", name);
}

}  // namespace platter::img

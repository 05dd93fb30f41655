#include "block/node/new_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "block/node/registry.h"

namespace platter {

NewFile::NewFile(const std::string& filename) {
  const DriverType* const protocol = protocol_for(filename);
  if (protocol == nullptr || protocol->name != "file") return;
  std::string path(local_path(filename));
  struct stat about{};
  if (lstat(path.c_str(), &about) != 0 && errno == ENOENT) path_ = std::move(path);
}

bool NewFile::remove() const {
  struct stat about{};
  return !path_.empty() && lstat(path_.c_str(), &about) == 0 && S_ISREG(about.st_mode) &&
         unlink(path_.c_str()) == 0;
}

}  // namespace platter

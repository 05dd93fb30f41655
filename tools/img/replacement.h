// A file that is made anew while an old one has its name: what comes is made beside the old file,
// under a name of its own, and takes the old one's place when it is whole. Until then, and for good
// if it comes to nothing, the old file is as it was.
//
// It is made in place instead, over what is there, where nothing else would do: what is no regular
// file, has several names, is a mount of its own or was passed as a descriptor (/dev/fd/N), and
// where the directory cannot be written or the owner not kept.
//
// Threads: one. Errors: name the file as the user does.
#pragma once

#include <optional>
#include <string>

#include "block/adapters/posix_file.h"
#include "block/base/error.h"
#include "block/node/new_file.h"

namespace platter::img {

class Replacement {
 public:
  // For what will be made at `name` (a node's filename).
  explicit Replacement(const std::string& name) : name_(name) {}
  ~Replacement() { remove(); }
  Replacement(const Replacement&) = delete;
  Replacement& operator=(const Replacement&) = delete;

  // Fails when another process uses the old file, or there is no space.
  Result<void> start();
  // Gives what has been made, and is closed, its name.
  Result<void> publish();
  // Removes what has been made and not published. False: it was made over what was there before.
  bool remove();

  const std::string& name() const { return name_; }
  // Where to make it, and open it until it is published.
  const std::string& path() const { return aside() ? beside_ : name_; }
  // Whether the old file is still there.
  bool aside() const { return !beside_.empty(); }

 private:
  Result<void> make_beside(UniqueFd old);

  std::string name_;
  std::optional<NewFile> new_file_;
  std::string old_;     // the file behind `name_`, without links
  std::string beside_;  // empty: made in place
  UniqueFd lock_;       // the old file, held for writing, so that nobody else does
};

}  // namespace platter::img

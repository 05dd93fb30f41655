// A file that is about to be made, and that nobody shall find half made.
//
// Threads: one. Errors: none; a file that cannot be removed stays.
#pragma once

#include <string>

namespace platter {

class NewFile {
 public:
  // Before `filename` (as a node's name) is made: looks whether it is there already. A device, a
  // link, another machine's image, or what existed before is never removed.
  explicit NewFile(const std::string& filename);
  // When what has been made by now cannot be finished. False: there is nothing that may go.
  bool remove() const;

 private:
  std::string path_;  // empty: nothing to remove
};

}  // namespace platter

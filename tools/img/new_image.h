// The image that a verb makes: in its own file or files, which are there when all is done, and as
// they were before when not.
//
//   NewImage image(name);
//   Result<void> made = co_await image.create(format, size, options);
//   ... image.locate(spec), open, write, close ...
//   made = image.finish(made, "convert");
//
// Threads: one. Errors: name the files as the user does.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "tools/img/common.h"
#include "tools/img/replacement.h"

namespace platter::img {

// Whether the file `name` is one of `node`, or of any image that it stands on.
bool stands_on(BlockNode& node, const std::string& name);

// Refuse to overwrite a file that another image needs: one that the image `name`, made with
// `options`, is to stand on, and any whatever with its external data file.
Result<void> check_is_not_below(BlockNode& backing, const std::string& name,
                                const Options& options);
Result<void> check_data_file_is_not_of(BlockNode& node, const Options& options);

class NewImage {
 public:
  explicit NewImage(const std::string& name) : file_(name) {}

  // Like create_image().
  Task<Result<void>> create(std::string format, std::uint64_t size, Options options);
  // What opens the image before it is finished.
  void locate(OpenSpec& spec) const;
  // Once the image is closed: with it the files get their names; after an error they go, and the
  // error tells what is left. `verb` is what may have been cancelled.
  Result<void> finish(Result<void> outcome, std::string_view verb);

 private:
  Result<void> publish();

  Replacement file_;
  std::optional<Replacement> data_file_;
  std::string backing_;  // relative to the image, if it has such a one
};

}  // namespace platter::img

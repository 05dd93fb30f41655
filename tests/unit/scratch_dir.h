// Directories of a test's own, which go with the object.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

namespace platter {

class ScratchDir {
 public:
  explicit ScratchDir(const std::string& parent = std::filesystem::temp_directory_path()) {
    std::string name = parent + "/platter-test-XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  ~ScratchDir() { std::filesystem::remove_all(path_); }
  ScratchDir(const ScratchDir&) = delete;
  ScratchDir& operator=(const ScratchDir&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// One that is the working directory as long as it is there.
class ScratchWorkingDir {
 public:
  ScratchWorkingDir() { std::filesystem::current_path(dir_.path()); }
  ~ScratchWorkingDir() { std::filesystem::current_path(before_); }
  const std::string& path() const { return dir_.path(); }

 private:
  const std::filesystem::path before_ = std::filesystem::current_path();
  const ScratchDir dir_;
};

}  // namespace platter

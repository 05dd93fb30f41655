// Running the peer programs that interop tests compare with.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>

namespace platter::interop {

struct Outcome {
  int status = -1;   // exit status
  std::string text;  // standard output and error, as they came
};

// Runs a shell command line.
inline Outcome shell(const std::string& command) {
  Outcome outcome;
  FILE* pipe = ::popen(("{ " + command + "; } 2>&1").c_str(), "r");
  if (!pipe) return outcome;
  char buffer[4096];
  while (const std::size_t n = std::fread(buffer, 1, sizeof buffer, pipe))
    outcome.text.append(buffer, n);
  const int status = ::pclose(pipe);
  if (WIFEXITED(status)) outcome.status = WEXITSTATUS(status);
  return outcome;
}

inline bool has_qemu() {
  static const bool found = shell("command -v qemu-img && command -v qemu-io").status == 0;
  return found;
}

// A directory of its own for each test, gone afterwards; skips where qemu-utils is missing.
class PeerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_qemu()) GTEST_SKIP() << "qemu-img and qemu-io (package qemu-utils) are missing";
    // In memory where that is possible: the peers flush often.
    const bool memory = ::access("/dev/shm", W_OK) == 0;
    const std::filesystem::path parent =
        memory ? std::filesystem::path("/dev/shm") : std::filesystem::temp_directory_path();
    std::string name = (parent / "platter-interop-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override {
    if (!directory_.empty()) std::filesystem::remove_all(directory_);
  }
  std::string path(std::string_view name) const { return directory_ + "/" + std::string(name); }
  // Runs in the test's directory.
  Outcome in_directory(const std::string& command) const {
    return shell("cd '" + directory_ + "' && " + command);
  }
  void must(const std::string& command) const {
    const Outcome outcome = in_directory(command);
    ASSERT_EQ(outcome.status, 0) << command << "\n" << outcome.text;
  }

  std::string directory_;
};

}  // namespace platter::interop

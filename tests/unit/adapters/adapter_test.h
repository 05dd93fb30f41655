// What the adapters' tests share: a scratch folder, and a driver opened by its name and options.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "block/exec/executor.h"
#include "block/node/driver.h"
#include "block/node/registry.h"
#include "unit/scratch_dir.h"

namespace platter {

inline void write_file(const std::string& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}
inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// A driver without a node around it, and an executor to run it on.
class OpenDriver {
 public:
  OpenDriver(const std::string& name, Options options, OpenFlags flags) {
    auto executor = Executor::create();
    EXPECT_TRUE(executor);
    executor_ = std::move(*executor);
    const DriverType* type = find_driver(name);
    EXPECT_NE(type, nullptr);
    OpenContext context{.options = options, .flags = flags, .node_name = "test", .filename = {}};
    Result<std::unique_ptr<Driver>> driver =
        executor_->block_on([&] { return type->open(context); });
    if (driver) {
      driver_ = std::move(*driver);
    } else {
      error_ = driver.error().message();
    }
    EXPECT_TRUE(!driver || options.all_taken(name));
  }

  explicit operator bool() const { return driver_ != nullptr; }
  const std::string& error() const { return error_; }
  Driver& operator*() { return *driver_; }
  Driver* operator->() { return driver_.get(); }
  void destroy() { driver_.reset(); }

  template <class Start>
  auto run(Start start) {
    return executor_->block_on(start);
  }
  Result<void> read(std::uint64_t offset, IoVec iov) {
    return run([&] { return driver_->do_read(offset, iov, {}); });
  }
  Result<void> write(std::uint64_t offset, IoVec iov, WriteFlags flags = {}) {
    return run([&] { return driver_->do_write(offset, iov, flags); });
  }
  Result<void> zero(std::uint64_t offset, std::uint64_t length, ZeroFlags flags = {}) {
    return run([&] { return driver_->do_write_zeroes(offset, length, flags); });
  }
  Result<void> discard(std::uint64_t offset, std::uint64_t length) {
    return run([&] { return driver_->do_discard(offset, length); });
  }
  Result<void> flush() {
    return run([&] { return driver_->do_flush(); });
  }
  Result<Extent> extent(std::uint64_t offset, std::uint64_t length) {
    return run([&] { return driver_->do_extent(offset, length); });
  }
  Result<void> resize(ResizeRequest request) {
    return run([&] { return driver_->do_resize(request); });
  }
  Result<void> permissions(Permissions permissions) {
    return run([&] { return driver_->do_set_permissions(permissions); });
  }
  Result<void> reopen(OpenFlags flags) {
    Result<void> prepared = run([&] { return driver_->prepare_reopen(flags); });
    if (prepared) {
      driver_->commit_reopen();
    } else {
      driver_->abort_reopen();
    }
    return prepared;
  }

 private:
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<Driver> driver_;
  std::string error_;
};

inline Options filename_options(const std::string& path) {
  Options options;
  options.set("filename", path);
  return options;
}

inline std::string error_of(const Result<void>& result) {
  return result ? "" : result.error().message();
}

}  // namespace platter

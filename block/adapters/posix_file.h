// Opening local files and devices safely, and asking the kernel what they can do.
//
// Threads: free functions, any thread; they make blocking system calls.
// Errors: positive errno codes in one line of text that names the file.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "block/base/error.h"
#include "block/base/unique_fd.h"
#include "block/exec/iovec.h"

namespace platter {

enum class FileKind : std::uint8_t { kRegular, kBlockDevice };

struct OpenMode {
  bool read_only = true;
  bool direct = false;
};

// Opens `path` if it is of `kind`, without ever waiting for a FIFO's other end and without touching
// what is of another kind any further. `driver` is for the message.
Result<UniqueFd> open_checked(const std::string& path, OpenMode mode, FileKind kind,
                              std::string_view driver);
// A second open file description of what `fd` is, whatever its name is by now.
Result<UniqueFd> open_again(int fd, OpenMode mode, const std::string& path);

// What direct I/O asks for, in bytes, powers of two.
struct DirectAlignment {
  std::uint32_t request = 4096;  // offsets and lengths
  std::uint32_t memory = 4096;   // buffers and each of their segments
};
// For a file opened for direct I/O.
DirectAlignment direct_alignment(int fd);

// Whether a regular file lives in memory alone (tmpfs, ramfs): a read or write is a copy and never
// waits.
bool in_memory(int fd);

// The path in a filename: "file:" or "host_device:" in front of it only names the driver.
std::string_view local_path_of(std::string_view filename);

// The segments of an IoVec as the kernel takes them: the first IOV_MAX of them.
class KernelIov {
 public:
  explicit KernelIov(const IoVec& iov);
  const iovec* data() const { return many_.empty() ? few_.data() : many_.data(); }
  unsigned count() const { return count_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::array<iovec, 6> few_;
  std::vector<iovec> many_;
  unsigned count_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace platter

#include "tools/run/disks.h"

#include <fmt/format.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "block/base/unique_fd.h"
#include "block/exec/executor_thread.h"
#include "block/node/graph.h"

namespace platter::run {
namespace {

// An empty file of our own for an overlay, removed as soon as it is open.
class TemporaryFile {
 public:
  static Result<TemporaryFile> create() {
    const char* directory = ::getenv("TMPDIR");
    std::string name = fmt::format(
        "{}/platter-run.XXXXXX", directory != nullptr && *directory != 0 ? directory : "/var/tmp");
    const UniqueFd fd(::mkstemp(name.data()));
    if (!fd) return fail_errno(errno, "could not create a throw-away overlay '{}'", name);
    return TemporaryFile(std::move(name));
  }
  TemporaryFile(TemporaryFile&& other) noexcept : name_(std::exchange(other.name_, {})) {}
  TemporaryFile& operator=(TemporaryFile&&) = delete;
  ~TemporaryFile() {
    if (!name_.empty()) ::unlink(name_.c_str());
  }
  const std::string& name() const { return name_; }

 private:
  explicit TemporaryFile(std::string name) : name_(std::move(name)) {}
  std::string name_;
};

OpenRequest request_for(const DiskOptions& disk) {
  OpenRequest request;
  request.filename = disk.filename;
  request.format = disk.format;
  request.flags = open_flags(disk);
  if (!disk.key_secret.empty()) request.options.set("encrypt.key-secret", disk.key_secret);
  request.permissions = request.flags.read_only ? Permissions::reader() : Permissions::writer();
  request.user = fmt::format("disk '{}'", disk.name);
  return request;
}

// A backing reference in an overlay elsewhere must not be relative.
std::string absolute_name(const std::string& filename) {
  std::error_code error;
  if (filename.starts_with("json:") || !std::filesystem::exists(filename, error)) return filename;
  const std::filesystem::path absolute = std::filesystem::absolute(filename, error);
  return error ? filename : absolute.string();
}

Task<Result<Edge>> open_overlay(DiskOptions disk, std::string overlay) {
  DiskOptions base = disk;
  base.read_only = true;
  OpenRequest base_request = request_for(base);
  auto opened = co_await open_node(std::move(base_request));
  PLATTER_CO_TRY(opened);
  Edge base_edge = std::move(*opened);
  const std::uint64_t size = base_edge->size();
  Options create;
  create.set("backing_file", absolute_name(disk.filename));
  create.set("backing_fmt", std::string(base_edge->driver_name()));
  auto detached = co_await base_edge.detach();
  PLATTER_CO_TRY(detached);
  auto created = co_await create_image("qcow2", overlay, size, std::move(create));
  if (!created)
    co_return forward_error(created, "could not create an overlay of '{}'", disk.filename);
  DiskOptions top = disk;
  top.filename = std::move(overlay);
  top.format = "qcow2";
  top.key_secret.clear();
  OpenRequest top_request = request_for(top);
  if (!disk.key_secret.empty())
    top_request.options.set("backing.encrypt.key-secret", disk.key_secret);
  auto edge = co_await open_node(std::move(top_request));
  co_return edge;
}

Task<Result<void>> close_edge(Edge& edge) {
  Result<void> flushed{};
  if (!edge->read_only()) flushed = co_await edge->flush();
  const std::string name = edge->filename();
  auto detached = co_await edge.detach();
  if (!flushed) co_return forward_error(flushed, "could not flush '{}'", name);
  if (!detached) co_return forward_error(detached, "could not close '{}'", name);
  co_return {};
}

}  // namespace

OpenFlags open_flags(const DiskOptions& disk) {
  OpenFlags flags;
  flags.read_only = disk.read_only;
  flags.direct = disk.cache == CacheMode::kNone || disk.cache == CacheMode::kDirectsync;
  flags.no_flush = disk.cache == CacheMode::kUnsafe;
  flags.writethrough =
      disk.cache == CacheMode::kWritethrough || disk.cache == CacheMode::kDirectsync;
  flags.discard_unmap = disk.discard;
  return flags;
}

Disks::~Disks() { (void)close(); }

Result<BlockNode*> Disks::open(const DiskOptions& disk) {
  Result<Edge> edge;
  if (disk.snapshot) {
    auto file = TemporaryFile::create();
    PLATTER_TRY(file);
    const auto work = [&] { return open_overlay(disk, file->name()); };
    edge = run_blocking(control_, work);
  } else {
    const auto work = [&] { return open_node(request_for(disk)); };
    edge = run_blocking(control_, work);
  }
  if (!edge) {
    const Error& why = edge.error();
    if (disk.name == disk.filename) return std::unexpected(why);
    return std::unexpected(why.renamed(disk.filename, disk.name));
  }
  edges_.push_back(std::move(*edge));
  return edges_.back().get();
}

Result<void> Disks::close() {
  Result<void> first{};
  while (!edges_.empty()) {
    const auto work = [&] { return close_edge(edges_.back()); };
    auto closed = run_blocking(control_, work);
    if (!closed && first) first = std::move(closed);
    edges_.pop_back();
  }
  return first;
}

}  // namespace platter::run

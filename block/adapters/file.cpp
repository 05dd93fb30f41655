#include "block/adapters/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/adapters/file_create.h"
#include "block/exec/workers.h"

namespace platter {
namespace {

constexpr std::string_view kFileDriver = "file";

Result<Locking> parse_locking(const std::string& text) {
  if (text == "on") return Locking::kOn;
  if (text == "off") return Locking::kOff;
  if (text == "auto") return Locking::kAuto;
  return fail(EINVAL, "invalid parameter value: {}", text);
}

}  // namespace

FileDriver::FileDriver(UniqueFd fd, std::uint64_t size, Settings settings)
    : settings_(std::move(settings)), size_(size), locks_(settings_.locking) {
  in_memory_ = platter::in_memory(fd.get());
  adopt(describe(std::move(fd), settings_.flags.direct));
}

FileDriver::Opened FileDriver::describe(UniqueFd fd, bool direct) {
  Opened opened{std::move(fd), direct, {}};
  if (direct) opened.alignment = direct_alignment(opened.fd.get());
  return opened;
}

void FileDriver::adopt(Opened opened) {
  fd_ = std::move(opened.fd);
  direct_ = opened.direct;
  alignment_ = opened.alignment;
}

Result<FileDriver::Settings> FileDriver::take_options(OpenContext& context,
                                                      std::string_view driver) {
  Settings settings;
  settings.flags = context.flags;
  std::optional<std::string> filename = context.options.take_string("filename");
  if (!filename || filename->empty()) {
    return fail(EINVAL, "The '{}' block driver requires a file name", driver);
  }
  settings.path = local_path_of(*filename);
  if (const auto aio = context.options.take_string("aio")) {
    // All three are the ring's business here.
    if (*aio != "threads" && *aio != "native" && *aio != "io_uring") {
      return fail(EINVAL, "invalid parameter value: {}", *aio);
    }
    settings.native_aio = *aio == "native";
  }
  if (const auto locking = context.options.take_string("locking")) {
    const Result<Locking> parsed = parse_locking(*locking);
    PLATTER_TRY(parsed);
    settings.locking = *parsed;
  }
  // Both are about a file whose user moves to another host. What is cached here is never stale: the
  // pages of a file that others write are the kernel's, not this program's.
  for (const std::string_view key : {"drop-cache", "x-check-cache-dropped"}) {
    const Result<std::optional<bool>> wanted = context.options.take_bool(key);
    PLATTER_TRY(wanted);
  }
  return settings;
}

Result<void> FileDriver::check_aio(const Settings& settings) {
  if (!settings.native_aio || settings.flags.direct) return {};
  return fail(
      EINVAL,
      "aio=native was specified, but it requires cache.direct=on, which was not specified.");
}

Task<Result<std::unique_ptr<Driver>>> FileDriver::open(OpenContext& context) {
  Result<Settings> settings = take_options(context, kFileDriver);
  PLATTER_CO_TRY(settings);
  const OpenMode mode{context.flags.read_only, context.flags.direct};
  Result<UniqueFd> fd = open_checked(settings->path, mode, FileKind::kRegular, kFileDriver);
  PLATTER_CO_TRY(fd);
  const Result<void> good = check_aio(*settings);
  PLATTER_CO_TRY(good);
  struct stat status{};
  if (::fstat(fd->get(), &status) != 0) {
    co_return fail_errno(errno, "Could not get the size of '{}'", settings->path);
  }
  const auto size = static_cast<std::uint64_t>(status.st_size);
  co_return std::make_unique<FileDriver>(std::move(*fd), size, std::move(*settings));
}

Limits FileDriver::basic_limits() const {
  Limits limits;
  if (direct_) {
    limits.request_alignment = alignment_.request;
    limits.memory_alignment = alignment_.memory;
  }
  limits.native_fua = true;
  return limits;
}

Limits FileDriver::limits() const { return basic_limits(); }

std::optional<std::uint64_t> FileDriver::allocated_size() {
  struct stat status{};
  if (::fstat(fd_.get(), &status) != 0) return std::nullopt;
  return static_cast<std::uint64_t>(status.st_blocks) * 512;
}

Task<Result<void>> FileDriver::do_close() {
  // The kernel may hold on to the description for a moment after its last request on the ring, and
  // with it the locks, in the way of who opens the file next.
  locks_.remove_from(fd_.get());
  const int error = fd_.close();
  const std::string& path = settings_.path;
  if (error != 0) {
    co_return fail_naming(path, error, "Could not close '{}': {}", path, errno_text(error));
  }
  co_return {};
}

Task<Result<void>> FileDriver::do_set_permissions(Permissions cumulative) {
  if (!reopened_) co_return locks_.change(fd_.get(), cumulative, settings_.path);
  // Between prepare_reopen() and its end there are two descriptions, and each sees the other's
  // locks as somebody else's: the locks change on the old one and are then copied anew.
  locks_.remove_from(reopened_->fd.get());
  const Result<void> changed = locks_.change(fd_.get(), cumulative, settings_.path);
  const Result<void> copied = locks_.copy_to(reopened_->fd.get());
  PLATTER_CO_TRY(changed);
  co_return copied;
}

Task<Result<void>> FileDriver::prepare_reopen(OpenFlags flags) {
  reopened_flags_ = flags;
  reopened_.reset();
  const OpenFlags& now = settings_.flags;
  if (flags.read_only == now.read_only && flags.direct == now.direct) co_return {};
  if (!now.read_only) {
    // What was lost of the writes so far, the kernel tells the old description.
    auto flushed = co_await do_flush();
    PLATTER_CO_TRY(flushed);
  }
  const OpenMode mode{flags.read_only, flags.direct};
  Result<UniqueFd> fd = open_again(fd_.get(), mode, settings_.path);
  PLATTER_CO_TRY(fd);
  // The old description keeps its locks until the new one has them too.
  Result<void> locked = locks_.copy_to(fd->get());
  PLATTER_CO_TRY(locked);
  reopened_ = describe(std::move(*fd), flags.direct);
  co_return {};
}

void FileDriver::commit_reopen() {
  settings_.flags = reopened_flags_;
  if (reopened_) {
    locks_.remove_from(fd_.get());  // (as in do_close())
    adopt(std::move(*reopened_));
  }
  reopened_.reset();
}

void FileDriver::abort_reopen() { reopened_.reset(); }

namespace {

// The names and meanings are those of qemu-img.
constexpr CreateOption kFileOptions[] = {
    {"extent_size_hint",
     CreateOption::Type::kSize,
     "Extent size hint for the image file, 0 to disable",
     {}},
    {"nocow", CreateOption::Type::kBool, "Turn off copy-on-write (valid only on btrfs)", {}},
    {"preallocation",
     CreateOption::Type::kString,
     "Preallocation mode (allowed values: off, falloc, full)",
     {}},
    {"size", CreateOption::Type::kSize, "Virtual disk size", {}},
};

Task<Result<void>> create_file(CreateRequest request) {
  Result<FileCreation> creation = FileCreation::from(std::move(request));
  PLATTER_CO_TRY(creation);
  auto work = [&] { return creation->run(); };
  co_return co_await run_on(WorkerPool::blocking(), work);
}

const RegisterDriver registered_file{DriverType{
    .name = kFileDriver,
    .protocol = true,
    .open = FileDriver::open,
    .create_options = kFileOptions,
    .create = create_file,
}};

}  // namespace
}  // namespace platter

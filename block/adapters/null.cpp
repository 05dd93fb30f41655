// null-co (also null-aio): a disk that keeps nothing, for benchmarks of what lies above it.
// Options: size (default 1 GiB), read-zeroes (else reads leave the buffer alone), latency-ns (each
// request takes that long). Filenames "null-co://" and "null-aio://".
//
// Threads: any. All members are immutable after open, but for the size.

#include <atomic>

#include "block/exec/executor.h"
#include "block/node/registry.h"

namespace platter {
namespace {

class NullDriver : public Driver {
 public:
  NullDriver(std::uint64_t size, bool read_zeroes, std::uint64_t latency)
      : size_(size),
        read_zeroes_(read_zeroes),
        latency_{.tv_sec = static_cast<long long>(latency / 1'000'000'000),
                 .tv_nsec = static_cast<long long>(latency % 1'000'000'000)} {}

  std::uint64_t size() const override { return size_.load(std::memory_order_relaxed); }
  Limits limits() const override { return {.native_fua = true}; }

  Task<Result<void>> do_read(std::uint64_t, IoVec iov, ReadFlags) override {
    if (read_zeroes_) iov.fill(std::byte{0});
    return wait();
  }
  Task<Result<void>> do_write(std::uint64_t, IoVec, WriteFlags) override { return wait(); }
  Task<Result<void>> do_write_zeroes(std::uint64_t, std::uint64_t, ZeroFlags) override {
    return wait();
  }
  Task<Result<void>> do_discard(std::uint64_t, std::uint64_t) override { return wait(); }
  Task<Result<void>> do_flush() override { return wait(); }
  Task<Result<Extent>> do_extent(std::uint64_t offset, std::uint64_t length) override {
    co_return Extent{.offset = offset,
                     .length = length,
                     .kind = read_zeroes_ ? ExtentKind::kZero : ExtentKind::kData,
                     .host_offset = offset};
  }
  Task<Result<void>> do_resize(ResizeRequest request) override {
    size_.store(request.size, std::memory_order_relaxed);
    co_return {};
  }
  std::optional<std::uint64_t> allocated_size() override { return 0; }

 private:
  Task<Result<void>> wait() {
    if (latency_.tv_sec != 0 || latency_.tv_nsec != 0) {
      const int passed = co_await io::timeout(&latency_);
      if (passed != -ETIME && passed < 0) co_return fail_errno(-passed);
    }
    co_return {};
  }

  std::atomic<std::uint64_t> size_;
  const bool read_zeroes_;
  const __kernel_timespec latency_;
};

Task<Result<std::unique_ptr<Driver>>> open_null(OpenContext& context) {
  context.options.take_string("filename");
  const auto size = context.options.take_size("size");
  PLATTER_CO_TRY(size);
  const auto read_zeroes = context.options.take_bool("read-zeroes");
  PLATTER_CO_TRY(read_zeroes);
  const auto latency = context.options.take_number("latency-ns");
  PLATTER_CO_TRY(latency);
  if (latency->value_or(0) > static_cast<std::uint64_t>(INT64_MAX)) {
    co_return fail(EINVAL, "latency-ns is invalid");
  }
  co_return std::make_unique<NullDriver>(size->value_or(std::uint64_t{1} << 30),
                                         read_zeroes->value_or(false), latency->value_or(0));
}

const RegisterDriver registered_co{
    DriverType{.name = "null-co", .protocol = true, .prefixes = {"null-co://"}, .open = open_null}};
const RegisterDriver registered_aio{DriverType{
    .name = "null-aio", .protocol = true, .prefixes = {"null-aio://"}, .open = open_null}};

}  // namespace
}  // namespace platter

#include "block/filters/fault.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>

#include "block/base/checked.h"
#include "block/exec/buffer.h"
#include "block/node/graph.h"
#include "block/node/nesting.h"

namespace platter {
namespace {

class FaultDriver : public Driver {
 public:
  // `held`: rights that are taken and refused to others beside those of the users above.
  FaultDriver(Edge image, std::unique_ptr<FaultPoints> points, Limits limits, Permissions held)
      : image_(std::move(image)), points_(std::move(points)), limits_(limits), held_(held) {}

  FaultPoints& points() { return *points_; }

  std::uint64_t size() const override { return image_->size(); }
  Limits limits() const override { return limits_; }
  bool can_grow() const override { return image_->driver().can_grow(); }
  bool listens_to_events() const override { return true; }
  Task<void> do_announce(FaultEvent event) override { return points_->announce(event); }

  Task<Result<void>> do_read(std::uint64_t offset, IoVec iov, ReadFlags flags) override {
    Decision decision;
    auto judged = co_await judge(fault_op::kRead, offset, iov.size(), decision);
    PLATTER_CO_TRY(judged);
    auto read = co_await image_->read(offset, iov.first(decision.length), flags);
    PLATTER_CO_TRY(read);
    if (decision.corrupt) invert_first(iov);
    co_return decision.afterwards;
  }

  // As in QEMU a packed write does not announce its beginning.
  Task<Result<void>> do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) override {
    if (!flags.compressed) {
      auto begun = points_->announce(FaultEvent::kPwritev);
      co_await begun;
    }
    auto writing = write_judged(offset, iov, flags);
    auto written = co_await writing;
    auto done = points_->announce(FaultEvent::kPwritevDone);
    co_await done;
    co_return written;
  }

  Task<Result<void>> do_write_zeroes(std::uint64_t offset, std::uint64_t length,
                                     ZeroFlags flags) override {
    auto begun = points_->announce(FaultEvent::kPwritevZero);
    co_await begun;
    auto zeroing = zero_judged(offset, length, flags);
    auto zeroed = co_await zeroing;
    auto done = points_->announce(FaultEvent::kPwritevDone);
    co_await done;
    co_return zeroed;
  }

  Task<Result<void>> do_discard(std::uint64_t offset, std::uint64_t length) override {
    Decision decision;
    auto judged = co_await judge(fault_op::kDiscard, offset, length, decision);
    PLATTER_CO_TRY(judged);
    auto discarded = co_await image_->discard(offset, decision.length);
    PLATTER_CO_TRY(discarded);
    co_return decision.afterwards;
  }

  Task<Result<void>> do_flush() override {
    Decision decision;
    auto judged = co_await judge(fault_op::kFlush, 0, 0, decision);
    PLATTER_CO_TRY(judged);
    auto flushed = co_await image_->flush();
    PLATTER_CO_TRY(flushed);
    co_return decision.afterwards;
  }

  Task<Result<Extent>> do_extent(std::uint64_t offset, std::uint64_t length) override {
    Decision decision;
    auto judged = co_await judge(fault_op::kExtent, offset, length, decision);
    PLATTER_CO_TRY(judged);
    auto extent = co_await image_->extent(offset, length);
    co_return extent;
  }

  Task<Result<void>> do_resize(ResizeRequest request) override {
    Decision decision;
    auto judged = co_await judge(fault_op::kResize, 0, 0, decision);
    PLATTER_CO_TRY(judged);
    auto resized = co_await image_->resize(request);
    co_return resized;
  }

  Task<Result<void>> do_set_permissions(Permissions cumulative) override {
    cumulative.need |= held_.need;
    cumulative.shared &= held_.shared;
    if (image_->flags().force_share) cumulative.shared = perm::kAll;
    return image_.set_permissions(cumulative);
  }

  std::vector<Edge*> children() override { return {&image_}; }
  BlockNode* storage() override { return image_.get(); }
  BlockNode* filtered() override { return image_.get(); }
  std::optional<std::uint64_t> allocated_size() override {
    return image_->driver().allocated_size();
  }

 private:
  struct Decision {
    std::uint64_t length = 0;  // how much is done
    Result<void> afterwards;
    bool corrupt = false;
  };

  Task<Result<void>> write_judged(std::uint64_t offset, IoVec iov, WriteFlags flags) {
    Decision decision;
    auto judged = co_await judge(fault_op::kWrite, offset, iov.size(), decision);
    PLATTER_CO_TRY(judged);
    Buffer bad;
    if (decision.corrupt && !iov.empty()) {
      bad = Buffer(iov.size());
      iov.copy_to(bad.data());
      invert_first(bad.iov());
      iov = bad.iov();
    }
    if (decision.length != 0) {
      auto written = co_await image_->write(offset, iov.first(decision.length), flags);
      PLATTER_CO_TRY(written);
    }
    co_return decision.afterwards;
  }

  Task<Result<void>> zero_judged(std::uint64_t offset, std::uint64_t length, ZeroFlags flags) {
    Decision decision;
    auto judged = co_await judge(fault_op::kWriteZeroes, offset, length, decision);
    PLATTER_CO_TRY(judged);
    auto zeroed = co_await image_->write_zeroes(offset, decision.length, flags);
    PLATTER_CO_TRY(zeroed);
    co_return decision.afterwards;
  }

  // Halts at breakpoints, waits out delays, and says what becomes of the request.
  Task<Result<void>> judge(std::uint32_t operation, std::uint64_t offset, std::uint64_t length,
                           Decision& decision) {
    decision.length = length;
    auto passed = points_->pass_breakpoints(operation, offset, length);
    co_await passed;
    const std::optional<FaultRule> rule = points_->match(operation, offset, length);
    if (!rule || rule->error == 0) co_return {};
    if (rule->error < 0) {
      // As in QEMU, what is no error's number is taken for success, and nothing has been done.
      decision.length = 0;
      co_return {};
    }
    switch (rule->action) {
      case FaultRule::Action::kFail:
        co_await detail::YieldIf{!rule->immediately};
        co_return fail_errno(rule->error);
      case FaultRule::Action::kShort:
        decision.length =
            align_down<std::uint64_t>(length / 2, std::max(512U, limits_.request_alignment));
        decision.afterwards = fail_errno(rule->error);
        break;
      case FaultRule::Action::kDelay: {
        const __kernel_timespec time{
            .tv_sec = static_cast<long long>(rule->delay_ns / 1'000'000'000),
            .tv_nsec = static_cast<long long>(rule->delay_ns % 1'000'000'000)};
        const int waited = co_await io::timeout(&time);
        static_cast<void>(waited);
        break;
      }
      case FaultRule::Action::kFlip:
        decision.corrupt = true;
        break;
    }
    co_return {};
  }

  static void invert_first(const IoVec& iov) {
    if (!iov.empty()) iov.first(1).for_each([](std::span<std::byte> s) { s[0] = ~s[0]; });
  }

  // Immutable after open; FaultPoints guards itself.
  Edge image_;
  const std::unique_ptr<FaultPoints> points_;
  const Limits limits_;
  const Permissions held_;
};

constexpr std::string_view kPrefix = "blkdebug:";

// "blkdebug:CONFIG:FILE" becomes config and image.
Result<void> split_filename(Options& options) {
  const std::optional<std::string> filename = options.take_string("filename");
  if (!filename) return {};
  std::string_view rest = *filename;
  if (!rest.starts_with(kPrefix)) {
    // The driver was named by itself: this is the image's name.
    options.set("image.filename", *filename);
    return {};
  }
  rest.remove_prefix(kPrefix.size());
  const std::size_t colon = rest.find(':');
  if (colon == std::string_view::npos) {
    return fail(EINVAL, "blkdebug requires both config file and image path");
  }
  if (colon != 0) options.set("config", std::string(rest.substr(0, colon)));
  options.set("image.filename", std::string(rest.substr(colon + 1)));
  return {};
}

Result<void> take_limits(Options& options, Limits& limits) {
  const auto take = [&](std::string_view key, auto& field, bool power_of_two) -> Result<void> {
    const Result<std::optional<std::uint64_t>> value = options.take_size(key);
    PLATTER_TRY(value);
    if (!*value) return {};
    using Field = std::remove_reference_t<decltype(field)>;
    if (**value == 0 || **value > std::numeric_limits<Field>::max() / 2 ||
        (power_of_two ? !is_power_of_two(**value) : **value % limits.request_alignment != 0)) {
      return fail(EINVAL, "Cannot meet constraints with {} {}", key, **value);
    }
    field = static_cast<Field>(**value);
    return {};
  };
  Result<void> taken = take("align", limits.request_alignment, true);
  PLATTER_TRY(taken);
  taken = take("max-transfer", limits.max_transfer, false);
  PLATTER_TRY(taken);
  taken = take("opt-write-zero", limits.zeroes_alignment, false);
  PLATTER_TRY(taken);
  taken = take("max-write-zero", limits.max_zeroes, false);
  PLATTER_TRY(taken);
  taken = take("opt-discard", limits.discard_alignment, false);
  PLATTER_TRY(taken);
  return take("max-discard", limits.max_discard, false);
}

// A list of rights: "take-child-perms.0=write,take-child-perms.1=resize".
Result<std::uint32_t> take_rights(Options& options, std::string_view key) {
  constexpr std::array<std::pair<std::string_view, std::uint32_t>, 4> kNames{
      {{"consistent-read", perm::kConsistentRead},
       {"write", perm::kWrite},
       {"write-unchanged", perm::kWriteUnchanged},
       {"resize", perm::kResize}}};
  std::uint32_t rights = 0;
  for (unsigned n = 0;; ++n) {
    const auto text = options.take_string(fmt::format("{}.{}", key, n));
    if (!text) return rights;
    const auto* const found =
        std::ranges::find(kNames, *text, [](const auto& e) { return e.first; });
    if (found == kNames.end())
      return fail(EINVAL, "Parameter '{}' does not accept value '{}'", key, *text);
    rights |= found->second;
  }
}

Result<Permissions> take_held(Options& options) {
  const Result<std::uint32_t> taken = take_rights(options, "take-child-perms");
  PLATTER_TRY(taken);
  const Result<std::uint32_t> kept = take_rights(options, "unshare-child-perms");
  PLATTER_TRY(kept);
  return Permissions{.need = *taken, .shared = perm::kAll & ~*kept};
}

Result<void> load_config(const std::string& path, FaultPoints& points) {
  std::ifstream file(path);
  if (!file) return fail_errno(errno, "Could not read blkdebug config file");
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  return add_rules_from_config(text, points);
}

// A filter's own flags below stay as they are above it.
Task<Result<std::unique_ptr<Driver>>> open_fault(OpenContext& context) {
  Options& options = context.options;
  const Result<void> split = split_filename(options);
  PLATTER_CO_TRY(split);
  auto points = std::make_unique<FaultPoints>();
  if (const auto config = options.take_string("config")) {
    const Result<void> loaded = load_config(*config, *points);
    PLATTER_CO_TRY(loaded);
  }
  const Result<void> added = add_rules_from_options(options, *points);
  PLATTER_CO_TRY(added);
  Limits limits;
  const Result<void> limited = take_limits(options, limits);
  PLATTER_CO_TRY(limited);
  const Result<Permissions> held = take_held(options);
  PLATTER_CO_TRY(held);
  const Permissions none{.need = 0, .shared = perm::kAll};
  auto image = co_await context.open_child("image", none);
  PLATTER_CO_TRY(image);
  limits.native_fua = true;
  co_return std::make_unique<FaultDriver>(std::move(*image), std::move(points), limits, *held);
}

DriverType fault_type() {
  return {.name = "blkdebug", .filter = true, .prefixes = {kPrefix}, .open = open_fault};
}

const RegisterDriver registered_fault{fault_type()};

}  // namespace

FaultPoints* fault_points_of(BlockNode& node) {
  for (BlockNode* at = &node; at; at = at->storage()) {
    if (auto* const driver = dynamic_cast<FaultDriver*>(&at->driver())) return &driver->points();
  }
  return nullptr;
}

Task<Result<NodePtr>> make_fault_node(std::string node_name, NodePtr below, OpenFlags flags) {
  static const DriverType type = fault_type();
  const Permissions none{.need = 0, .shared = perm::kAll};
  auto image =
      co_await Edge::attach(std::move(below), fmt::format("node '{}' as 'image'", node_name), none);
  PLATTER_CO_TRY(image);
  auto driver = std::make_unique<FaultDriver>(std::move(*image), std::make_unique<FaultPoints>(),
                                              Limits{.native_fua = true}, none);
  flags.discard_unmap = true;
  co_return BlockNode::create(type, std::move(driver), std::move(node_name), "", flags);
}

}  // namespace platter

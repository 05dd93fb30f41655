// Amending an image: its version, key slots, refcount width and flags.
#include <algorithm>
#include <bit>

#include "block/node/registry.h"
#include "formats/qcow2/check.h"
#include "formats/qcow2/complete_snapshots.h"
#include "formats/qcow2/create.h"
#include "formats/qcow2/driver.h"

namespace platter::qcow2 {
namespace {

using Type = CreateOption::Type;

constexpr CreateOption kAmendOptions[] = {
    {"backing_file", Type::kString, "File name of a base image"},
    {"backing_fmt", Type::kString, "Image format of the base image"},
    {"compat", Type::kString, "Compatibility level (v2 [0.10] or v3 [1.1])"},
    {"data_file", Type::kString, "File name of an external data file"},
    {"data_file_raw", Type::kBool, "The external data file must stay valid as a raw image"},
    {"encrypt.iter-time", Type::kNumber, "Time to spend in PBKDF in milliseconds"},
    {"encrypt.keyslot", Type::kNumber, "Select a single keyslot to modify explicitly"},
    {"encrypt.new-secret", Type::kString,
     "New secret to set in the matching keyslots. Empty string to erase"},
    {"encrypt.old-secret", Type::kString, "Select all keyslots that match this password"},
    {"encrypt.state", Type::kString, "Select new state of affected keyslots (active/inactive)"},
    {"lazy_refcounts", Type::kBool, "Postpone refcount updates"},
    {"refcount_bits", Type::kNumber, "Width of a reference count entry in bits"},
    {"size", Type::kSize, "Virtual disk size"},
};

struct BackingReference {
  std::string filename;  // empty: none
  std::string format;
};

struct Amendment {
  std::uint32_t version = 0;
  unsigned refcount_order = 0;
  bool lazy_refcounts = false;
  bool data_file_raw = false;
  std::optional<std::string> data_file;
  std::optional<crypto::LuksAmendment> key_slots = std::nullopt;
  std::optional<BackingReference> backing = std::nullopt;  // when it changes
};

Result<std::optional<crypto::LuksAmendment>> plan_key_slots(Options& options, CryptMethod method) {
  if (!options.has_child("encrypt")) return std::nullopt;
  Options given = options.take_child("encrypt");
  if (method == CryptMethod::kNone)
    return fail(EINVAL, "Can't amend encryption options - encryption not present");
  if (method != CryptMethod::kLuks) {
    return fail(ENOTSUP, "Only LUKS encryption options can be amended");
  }
  return crypto::take_luks_amendment(given);
}

// The rules of an unsafe rebase: what the disk shows of the old file is not looked at, and a file
// is named with its format.
Result<std::optional<BackingReference>> plan_backing(Options& options, const Header& header) {
  const auto file = options.take_string("backing_file");
  const auto format = options.take_string("backing_fmt");
  const std::string stored = header.extensions.backing_format.value_or("");
  const bool same_file = !file || *file == header.backing_file;
  if (same_file && (!format || *format == stored)) return std::nullopt;
  BackingReference next{file.value_or(header.backing_file),
                        format.value_or(same_file ? stored : "")};
  if (next.filename.empty()) {
    if (!next.format.empty()) return fail(EINVAL, "backing_fmt needs a backing file");
    return next;
  }
  if (next.format.empty()) return fail(EINVAL, "backing_fmt must be given with backing_file");
  if (find_driver(next.format) == nullptr)
    return fail(EINVAL, "Invalid format name: '{}'", next.format);
  if (next.filename.size() > kMaxBackingNameBytes) {
    return fail(EINVAL, "Backing file name too long: {} bytes, at most {}", next.filename.size(),
                kMaxBackingNameBytes);
  }
  return next;
}

Result<Amendment> plan_amendment(Options& options, const Header& header) {
  Amendment now{.version = header.version,
                .refcount_order = header.refcount_order,
                .lazy_refcounts = header.lazy_refcounts(),
                .data_file_raw = header.data_file_raw(),
                .data_file = header.extensions.data_file};
  if (const auto compat = options.take_string("compat")) {
    if (*compat == "0.10" || *compat == "v2") {
      now.version = 2;
    } else if (*compat == "1.1" || *compat == "v3") {
      now.version = 3;
    } else {
      return fail(EINVAL, "Unknown compatibility level {}", *compat);
    }
  }
  auto backing = plan_backing(options, header);
  PLATTER_TRY(backing);
  now.backing = std::move(*backing);
  const auto bits = options.take_number("refcount_bits");
  PLATTER_TRY(bits);
  if (*bits) {
    if (**bits == 0 || **bits > 64 || !is_power_of_two(**bits)) {
      return fail(EINVAL, "Refcount width must be a power of two and may not exceed 64 bits");
    }
    now.refcount_order = static_cast<unsigned>(std::countr_zero(**bits));
    if (now.version < 3 && **bits != 16) {
      return fail(EINVAL,
                  "Refcount widths other than 16 bits require compatibility level 1.1 or above "
                  "(use compat=1.1 or greater)");
    }
  }
  const auto lazy = options.take_bool("lazy_refcounts");
  PLATTER_TRY(lazy);
  now.lazy_refcounts = lazy->value_or(now.lazy_refcounts && now.version >= 3);
  if (now.lazy_refcounts && now.version < 3) {
    return fail(EINVAL,
                "Lazy refcounts only supported with compatibility level 1.1 and above (use "
                "compat=1.1 or greater)");
  }
  const auto raw = options.take_bool("data_file_raw");
  PLATTER_TRY(raw);
  if (raw->value_or(false) && !now.data_file_raw) {
    return fail(EINVAL, "data-file-raw cannot be set on existing images");
  }
  now.data_file_raw = raw->value_or(now.data_file_raw);
  if (now.data_file_raw && now.backing && !now.backing->filename.empty())
    return fail(EINVAL, "an image with data_file_raw has no backing file");
  if (auto data_file = options.take_string("data_file")) {
    if (!header.has_data_file()) {
      return fail(EINVAL, "data-file can only be set for images that use an external data file");
    }
    now.data_file = std::move(*data_file);
    if (now.data_file->empty()) now.data_file.reset();
  }
  auto key_slots = plan_key_slots(options, header.crypt_method);
  PLATTER_TRY(key_slots);
  now.key_slots = std::move(*key_slots);
  const Result<void> rest = options.all_taken("qcow2");
  PLATTER_TRY(rest);
  return now;
}

}  // namespace

std::span<const CreateOption> amend_options() { return kAmendOptions; }

Task<Result<void>> Qcow2Driver::amend(Options options, bool force,
                                      std::function<void(std::uint64_t, std::uint64_t)> progress,
                                      const std::atomic<bool>* cancelled) {
  if (!core_.writable) co_return fail(EROFS, "the image is read-only");
  Header header;
  {
    // A write-back may be changing other fields.
    auto guard = co_await core_.header_mutex.lock();
    header = core_.header;
  }
  const auto plan = plan_amendment(options, header);
  PLATTER_CO_TRY(plan);
  if (plan->version < 3) {
    // Refused before anything else is changed.
    if (plan->refcount_order != 4) co_return fail(EINVAL, "compat=0.10 requires refcount_bits=16");
    const Result<void> possible = may_downgrade();
    PLATTER_CO_TRY(possible);
  }
  if (plan->key_slots) {
    const Result<void> possible = crypto::check_luks_amendment(*plan->key_slots, *luks_, force);
    PLATTER_CO_TRY(possible);
  }
  std::uint64_t done = 0;
  const auto advance = [&] {
    if (progress) progress(++done, 7);
  };
  if (plan->version > header.version) {
    auto upgraded = co_await amend_alone(&Qcow2Driver::upgrade_now, plan->version, cancelled);
    PLATTER_CO_TRY(upgraded);
  }
  advance();
  if (plan->key_slots) {
    if (is_set(cancelled)) co_return fail(ECANCELED, "cancelled");
    auto amended = co_await amend_key_slots(*plan->key_slots, force);
    PLATTER_CO_TRY(amended);
  }
  advance();
  if (plan->refcount_order != header.refcount_order) {
    auto widened = co_await amend_alone(&Qcow2Driver::change_refcount_width_now,
                                        plan->refcount_order, cancelled);
    PLATTER_CO_TRY(widened);
  }
  advance();
  if (plan->data_file_raw != header.data_file_raw() ||
      plan->data_file != header.extensions.data_file) {
    const auto rename = [&plan](Header& changed) {
      if (!plan->data_file_raw) changed.autoclear_features &= ~autoclear::kDataFileRaw;
      changed.extensions.data_file = plan->data_file;
    };
    const std::function<void(Header&)> named(rename);
    auto alone = co_await operations_.lock();
    auto renamed = co_await change_header(named);
    PLATTER_CO_TRY(renamed);
  }
  advance();
  if (plan->backing) {
    const std::function<Result<void>()> always;
    auto renamed = co_await change_backing(plan->backing->filename, plan->backing->format, always);
    if (!renamed) {
      co_return forward_error(renamed, "Could not change the backing file to '{}'",
                              plan->backing->filename);
    }
  }
  advance();
  if (plan->lazy_refcounts != header.lazy_refcounts()) {
    auto changed = co_await amend_alone(&Qcow2Driver::change_lazy_refcounts_now,
                                        plan->lazy_refcounts, cancelled);
    PLATTER_CO_TRY(changed);
  }
  advance();
  if (plan->version < header.version) {
    auto downgraded = co_await amend_alone(&Qcow2Driver::downgrade_now, plan->version, cancelled);
    PLATTER_CO_TRY(downgraded);
  }
  advance();
  co_return {};
}

Task<Result<void>> Qcow2Driver::amend_alone(Work work, std::uint64_t value,
                                            const std::atomic<bool>* cancelled) {
  if (is_set(cancelled)) co_return fail(ECANCELED, "cancelled");
  const auto step = [this, work, value, cancelled] {
    cancelled_ = cancelled;
    return (this->*work)(value);
  };
  const std::function<Task<Result<void>>()> named(step);
  auto done = co_await exclusively(named, true);
  co_return done;
}

Task<Result<void>> Qcow2Driver::amend_key_slots(crypto::LuksAmendment amendment, bool force) {
  auto alone = co_await operations_.lock();
  if (core_.poisoned.load()) co_return core_.given_up();
  const std::uint64_t base = core_.header.extensions.encryption->offset;
  // As it is on disk: a write that failed may have come through, or be lost after all.
  auto present = co_await read_encryption_header(*core_.file, core_.header);
  PLATTER_CO_TRY(present);
  luks_ = std::move(*present);
  auto amended = co_await crypto::amend_luks(*core_.file, base, *luks_, std::move(amendment),
                                             key_secret_, force);
  co_return amended;
}

Task<Result<void>> Qcow2Driver::change_header(const std::function<void(Header&)>& change) {
  auto guard = co_await core_.header_mutex.lock();
  auto written = co_await core_.file->flush();
  PLATTER_CO_TRY(written);
  const Header before = core_.header;
  change(core_.header);
  written = co_await core_.publish_header();
  if (!written) core_.header = before;
  co_return written;
}

Task<Result<void>> Qcow2Driver::upgrade_now(std::uint64_t version) {
  const auto lacks = [](const Snapshot& s) { return !s.disk_size; };
  if (std::ranges::any_of(snapshots_.table(), lacks)) {
    Header header = core_.header;
    if (needs_repair_) header.incompatible_features |= incompatible::kDirty;
    auto completed = co_await complete_snapshots(*core_.file, header,
                                                 static_cast<std::uint32_t>(version), cancelled_);
    // As far as it came, it is on disk.
    auto guard = co_await core_.header_mutex.lock();
    if (!completed && header != core_.header) core_.header_unsure.store(true);
    core_.header = std::move(header);
    core_.geometry = core_.header.geometry();
    co_return completed;
  }
  const auto raise = [this, version](Header& header) {
    header.version = static_cast<std::uint32_t>(version);
    if (needs_repair_) header.incompatible_features |= incompatible::kDirty;
  };
  const std::function<void(Header&)> named(raise);
  auto written = co_await change_header(named);
  PLATTER_CO_TRY(written);
  core_.geometry = core_.header.geometry();
  co_return {};
}

Task<Result<void>> Qcow2Driver::change_refcount_width_now(std::uint64_t order) {
  Header header = core_.header;
  auto changed =
      co_await change_refcount_width(*core_.file, header, static_cast<unsigned>(order), cancelled_);
  // As far as it came, it is on disk.
  auto guard = co_await core_.header_mutex.lock();
  // The new structure is there; whether the header that points to it is, nobody knows.
  if (!changed && header != core_.header) core_.header_unsure.store(true);
  core_.header = std::move(header);
  core_.geometry = core_.header.geometry();
  co_return changed;
}

Task<Result<void>> Qcow2Driver::change_lazy_refcounts_now(std::uint64_t on) {
  const auto switch_it = [this, on](Header& header) {
    if (on != 0) {
      header.compatible_features |= compatible::kLazyRefcounts;
    } else {
      // All counts are on disk by now.
      header.compatible_features &= ~compatible::kLazyRefcounts;
      if (!needs_repair_) header.incompatible_features &= ~incompatible::kDirty;
    }
  };
  const std::function<void(Header&)> named(switch_it);
  auto written = co_await change_header(named);
  co_return written;
}

Result<void> Qcow2Driver::may_downgrade() const {
  const Header& header = core_.header;
  if (header.version < 3) return {};
  if (header.has_data_file()) return fail(ENOTSUP, "Cannot downgrade an image with a data file");
  const std::uint64_t features = header.incompatible_features & ~incompatible::kDirty;
  if (features != 0) {
    return fail(ENOTSUP, "Cannot downgrade an image with incompatible features {:#x} set",
                features);
  }
  if (!bitmaps_.empty()) {
    return fail(ENOTSUP, "Cannot downgrade an image with persistent bitmaps: remove them first");
  }
  for (const Snapshot& snapshot : snapshots_.table()) {
    if (snapshot.vm_state_size != 0 || snapshot.disk_size.value_or(size()) != size()) {
      return fail(ENOTSUP, "Internal snapshots prevent downgrade of image");
    }
  }
  return {};
}

Task<Result<void>> Qcow2Driver::downgrade_now(std::uint64_t version) {
  // Version 2 has no bit that says so.
  if (needs_repair_) co_return fail(EIO, "the image must be repaired first: 'check -r all'");
  auto expanded = co_await expand_zeroes();
  PLATTER_CO_TRY(expanded);
  const auto lower = [version](Header& header) {
    header.version = static_cast<std::uint32_t>(version);
    header.incompatible_features = 0;
    header.compatible_features = 0;
    header.autoclear_features = 0;
    header.unknown_fields.clear();
    header.extensions.feature_names.clear();
  };
  const std::function<void(Header&)> named(lower);
  auto written = co_await change_header(named);
  PLATTER_CO_TRY(written);
  core_.geometry = core_.header.geometry();
  co_return {};
}

}  // namespace platter::qcow2

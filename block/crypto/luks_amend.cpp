#include "block/crypto/luks_amend.h"

#include <algorithm>

#include "block/crypto/luks_io.h"
#include "block/exec/workers.h"

namespace platter::crypto {
namespace {

// The part of a header that a disk writes as a whole.
constexpr std::size_t kFirstSector = kSectorSize;

// Slot 6 lies in both sectors of the header, its state in the first one. To be filled, its rest is
// written before its state; to be erased, after it.
enum class Order : std::uint8_t { kStateLast, kStateFirst };

class SlotWriter {
 public:
  SlotWriter(BlockNode& file, std::uint64_t base, LuksHeader& header)
      : file_(file), base_(base), header_(header) {}

  // Durable when it completes.
  Task<Result<void>> put_material(std::size_t slot, const std::vector<std::byte>& bytes) {
    const IoVec iov = IoVec::of_const(bytes);
    auto written = co_await file_.write(base_ + header_.slots[slot].offset(), iov);
    if (written) written = co_await file_.flush();
    if (!written) co_return forward_error(written, "Failed to write to keyslot {}", slot);
    co_return {};
  }

  // Makes `next` the header, durably.
  Task<Result<void>> put_header(LuksHeader next, Order order) {
    const auto before = encode_luks_header(header_);
    const auto bytes = encode_luks_header(next);
    for (const bool first : {order == Order::kStateFirst, order == Order::kStateLast}) {
      const std::size_t from = first ? 0 : kFirstSector;
      const std::size_t to = first ? kFirstSector : kLuksHeaderBytes;
      const auto part = std::span(bytes).subspan(from, to - from);
      if (std::ranges::equal(part, std::span(before).subspan(from, to - from))) continue;
      const IoVec iov = IoVec::of_const(part);
      auto written = co_await file_.write(base_ + from, iov);
      if (written) written = co_await file_.flush();
      if (!written) co_return forward_error(written, "Unable to write LUKS header");
    }
    header_ = std::move(next);
    co_return {};
  }

  Task<Result<void>> put_slot(std::size_t slot, LuksSlot value) {
    LuksHeader next = header_;
    const std::uint32_t sector = next.slots[slot].sector;
    next.slots[slot] = value;
    next.slots[slot].sector = sector;
    auto done =
        co_await put_header(std::move(next), value.active ? Order::kStateLast : Order::kStateFirst);
    co_return done;
  }

  Task<Result<void>> erase(std::size_t slot) {
    LuksHeader next = header_;
    const auto noise = erase_luks_slot(next, slot, true);
    PLATTER_CO_TRY(noise);
    auto done = co_await put_header(std::move(next), Order::kStateFirst);
    if (done) done = co_await put_material(slot, *noise);
    if (!done) co_return forward_error(done, "Failed to erase keyslot {}", slot);
    co_return {};
  }

  // `filled`, an active slot, with its `material`, as slot number `slot`.
  Task<Result<void>> fill(std::size_t slot, LuksSlot filled, std::vector<std::byte> material) {
    std::optional<std::size_t> spare;
    if (header_.slots[slot].active) {
      // Whoever overwrites the only key must be able to open the volume with either, always.
      const auto idle = std::ranges::find(header_.slots, false, &LuksSlot::active);
      if (idle != header_.slots.end())
        spare = static_cast<std::size_t>(idle - header_.slots.begin());
    }
    const Result<void> opens = check_ahead(slot, spare, filled);
    PLATTER_CO_TRY(opens);
    if (header_.slots[slot].active) {
      if (spare) {
        auto lent = co_await fill_idle(*spare, filled, material);
        PLATTER_CO_TRY(lent);
      }
      LuksSlot none = header_.slots[slot];
      none.active = false;
      auto cleared = co_await put_slot(slot, none);
      PLATTER_CO_TRY(cleared);
    }
    auto done = co_await fill_idle(slot, filled, std::move(material));
    PLATTER_CO_TRY(done);
    if (spare) done = co_await erase(*spare);
    co_return done;
  }

 private:
  // All headers on the way are such as will be opened again.
  Result<void> check_ahead(std::size_t slot, std::optional<std::size_t> spare,
                           const LuksSlot& filled) const {
    LuksHeader next = header_;
    Result<void> opens;
    if (spare) {
      next.slots[*spare] = filled;
      opens = check_luks_iterations(next);
    }
    next.slots[slot] = filled;
    if (opens) opens = check_luks_iterations(next);
    if (!opens) return forward_error(opens, "Can't add keyslot {}", slot);
    return {};
  }

  Task<Result<void>> fill_idle(std::size_t slot, LuksSlot filled, std::vector<std::byte> material) {
    auto done = co_await put_material(slot, material);
    PLATTER_CO_TRY(done);
    done = co_await put_slot(slot, filled);
    co_return done;
  }

  BlockNode& file_;
  const std::uint64_t base_;
  LuksHeader& header_;
};

Result<std::size_t> slot_to_fill(const LuksAmendment& amendment, const LuksHeader& header) {
  if (amendment.slot) return static_cast<std::size_t>(*amendment.slot);
  const auto idle = std::ranges::find(header.slots, false, &LuksSlot::active);
  if (idle == header.slots.end())
    return fail(EINVAL, "Can't add a keyslot - all keyslots are in use");
  return static_cast<std::size_t>(idle - header.slots.begin());
}

Result<void> check_activation(const LuksAmendment& amendment, const LuksHeader& header,
                              bool force) {
  if (!amendment.new_secret) return fail(EINVAL, "'new-secret' is required to activate a keyslot");
  if (amendment.old_secret)
    return fail(EINVAL, "'old-secret' must not be given when activating keyslots");
  const auto slot = slot_to_fill(amendment, header);
  PLATTER_TRY(slot);
  if (*slot < kLuksSlots && header.slots[*slot].active && !force) {
    return fail(EINVAL, "Refusing to overwrite active keyslot {} - please erase it first", *slot);
  }
  return {};
}

Result<void> check_erasure(const LuksAmendment& amendment) {
  if (amendment.new_secret)
    return fail(EINVAL, "'new-secret' must not be given when erasing keyslots");
  if (amendment.iteration_milliseconds)
    return fail(EINVAL, "'iter-time' must not be given when erasing keyslots");
  if (!amendment.slot && !amendment.old_secret) {
    return fail(EINVAL,
                "To erase keyslot(s), either explicit keyslot index or the password currently "
                "contained in them must be given");
  }
  if (amendment.old_secret) {
    const auto known = find_secret(*amendment.old_secret);
    PLATTER_TRY(known);
  }
  return {};
}

std::ptrdiff_t active_slots(const LuksHeader& header) {
  return std::ranges::count(header.slots, true, &LuksSlot::active);
}

// The slots that are to be erased, in order.
Task<Result<std::vector<std::size_t>>> find_slots_to_erase(BlockNode& file, std::uint64_t base,
                                                           const LuksHeader& header,
                                                           const LuksAmendment& amendment,
                                                           bool force) {
  std::vector<std::size_t> opened;
  if (amendment.old_secret) {
    auto passphrase = find_secret(*amendment.old_secret);
    PLATTER_CO_TRY(passphrase);
    for (std::size_t slot = 0; slot < kLuksSlots; ++slot) {
      if (amendment.slot && slot != *amendment.slot) continue;
      SecretBytes tried = passphrase->copy();
      auto key = co_await try_luks_slot(file, base, header, slot, std::move(tried));
      PLATTER_CO_TRY(key);
      if (*key) opened.push_back(slot);
    }
  }
  if (amendment.slot) {
    const auto slot = static_cast<std::size_t>(*amendment.slot);
    if (amendment.old_secret && opened.empty()) {
      co_return fail(EINVAL,
                     "Given keyslot {} doesn't contain the given old password for erase operation",
                     slot);
    }
    if (!force && !header.slots[slot].active)
      co_return fail(EINVAL, "Given keyslot {} is already erased (inactive) ", slot);
    if (!force && active_slots(header) == 1) {
      co_return fail(EINVAL,
                     "Attempt to erase the only active keyslot {} which will erase all the data in "
                     "the image irreversibly - refusing operation",
                     slot);
    }
    std::vector<std::size_t> one{slot};
    co_return std::move(one);
  }
  if (opened.empty())
    co_return fail(EINVAL, "No keyslots match given (old) password for erase operation");
  if (!force && active_slots(header) == std::ssize(opened)) {
    co_return fail(EINVAL,
                   "All the active keyslots match the (old) password that was given and erasing "
                   "them will erase all the data in the image irreversibly - refusing operation");
  }
  co_return std::move(opened);
}

struct Filled {
  LuksSlot slot;
  std::vector<std::byte> material;
};

Task<Result<Filled>> make_slot_aside(LuksHeader header, std::size_t slot, SecretBytes key,
                                     SecretBytes passphrase, std::uint64_t milliseconds) {
  auto work = [&]() -> Result<Filled> {
    header.slots[slot].active = false;
    auto material = fill_luks_slot(header, slot, key.span(), passphrase.span(), milliseconds);
    PLATTER_TRY(material);
    return Filled{header.slots[slot], std::move(*material)};
  };
  auto made = co_await run_on(WorkerPool::blocking(), work);
  co_return made;
}

}  // namespace

Result<LuksAmendment> take_luks_amendment(Options& options) {
  LuksAmendment amendment;
  const auto state = options.take_string("state");
  if (!state) return fail(EINVAL, "Parameter 'state' is missing");
  if (*state != "active" && *state != "inactive")
    return fail(EINVAL, "Parameter 'state' does not accept value '{}'", *state);
  amendment.activate = *state == "active";
  const auto slot = options.take_number("keyslot");
  PLATTER_TRY(slot);
  if (slot->value_or(0) > INT64_MAX) return fail(EINVAL, "Parameter 'keyslot' expects integer");
  amendment.slot = *slot;
  amendment.new_secret = options.take_string("new-secret");
  amendment.old_secret = options.take_string("old-secret");
  const auto time = options.take_number("iter-time");
  PLATTER_TRY(time);
  amendment.iteration_milliseconds = *time;
  if (!options.empty()) return fail(EINVAL, "Parameter '{}' is unexpected", options.begin()->first);
  return amendment;
}

Result<void> check_luks_amendment(const LuksAmendment& amendment, const LuksHeader& header,
                                  bool force) {
  const Result<void> checked =
      amendment.activate ? check_activation(amendment, header, force) : check_erasure(amendment);
  PLATTER_TRY(checked);
  if (amendment.slot && *amendment.slot >= kLuksSlots) {
    return fail(EINVAL, "Invalid keyslot {} specified, must be between 0 and {}", *amendment.slot,
                kLuksSlots - 1);
  }
  if (amendment.new_secret) {
    const auto known = find_secret(*amendment.new_secret);
    PLATTER_TRY(known);
  }
  return {};
}

Task<Result<void>> amend_luks(BlockNode& file, std::uint64_t base, LuksHeader& header,
                              LuksAmendment amendment, std::optional<std::string> secret,
                              bool force) {
  const Result<void> allowed = check_luks_amendment(amendment, header, force);
  PLATTER_CO_TRY(allowed);
  SlotWriter writer(file, base, header);
  if (!amendment.activate) {
    auto slots = co_await find_slots_to_erase(file, base, header, amendment, force);
    PLATTER_CO_TRY(slots);
    for (const std::size_t slot : *slots) {
      auto erased = co_await writer.erase(slot);
      PLATTER_CO_TRY(erased);
    }
    co_return {};
  }
  const auto slot = slot_to_fill(amendment, header);
  PLATTER_CO_TRY(slot);
  const std::string id = secret.value_or("");
  auto old_passphrase = find_secret(id);
  PLATTER_CO_TRY(old_passphrase);
  auto key = co_await unlock_luks(file, base, header, std::move(*old_passphrase));
  PLATTER_CO_TRY(key);
  auto passphrase = find_secret(*amendment.new_secret);
  PLATTER_CO_TRY(passphrase);
  const LuksParameters usual;
  const std::uint64_t milliseconds =
      amendment.iteration_milliseconds.value_or(usual.iteration_milliseconds);
  auto filled = co_await make_slot_aside(header, *slot, std::move(*key), std::move(*passphrase),
                                         milliseconds);
  PLATTER_CO_TRY(filled);
  auto written = co_await writer.fill(*slot, filled->slot, std::move(filled->material));
  co_return written;
}

}  // namespace platter::crypto

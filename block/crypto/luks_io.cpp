#include "block/crypto/luks_io.h"

#include "block/exec/buffer.h"
#include "block/exec/workers.h"

namespace platter::crypto {

Task<Result<LuksHeader>> read_luks_header(BlockNode& file, std::uint64_t base, std::uint64_t area) {
  const std::uint64_t size = file.size();
  if (base >= size || size - base < kLuksHeaderBytes) {
    co_return fail(EINVAL, "LUKS header at {} is outside the file of {} bytes", base, size);
  }
  const Buffer bytes(kLuksHeaderBytes);
  auto read = co_await file.read(base, bytes.iov());
  if (!read) co_return forward_error(read, "Unable to read LUKS header");
  co_return parse_luks_header(bytes.span(), area);
}

Task<Result<std::optional<SecretBytes>>> try_luks_slot(BlockNode& file, std::uint64_t base,
                                                       const LuksHeader& header, std::size_t slot,
                                                       SecretBytes passphrase) {
  if (!header.slots[slot].active) co_return std::optional<SecretBytes>();
  const Buffer material(header.material_bytes());
  const std::uint64_t offset = base + header.slots[slot].offset();
  if (offset > file.size() || file.size() - offset < material.size()) {
    co_return fail(EINVAL, "Keyslot {} at {} is outside the file", slot, offset);
  }
  auto read = co_await file.read(offset, material.iov());
  if (!read) co_return forward_error(read, "Failed to read key material");
  auto work = [&] { return unlock_luks_slot(header, slot, material.span(), passphrase.span()); };
  auto key = co_await run_on(WorkerPool::blocking(), work);
  co_return std::move(key);
}

Task<Result<SecretBytes>> unlock_luks(BlockNode& file, std::uint64_t base, LuksHeader header,
                                      SecretBytes passphrase) {
  const auto supported = header.cipher();
  PLATTER_CO_TRY(supported);
  for (std::size_t slot = 0; slot < kLuksSlots; ++slot) {
    SecretBytes tried = passphrase.copy();
    auto key = co_await try_luks_slot(file, base, header, slot, std::move(tried));
    PLATTER_CO_TRY(key);
    if (*key) co_return std::move(**key);
  }
  co_return fail(EACCES, "Invalid password, cannot unlock any keyslot");
}

Task<Result<LuksVolume>> make_luks_volume_aside(LuksParameters parameters, SecretBytes passphrase) {
  auto work = [&] { return make_luks_volume(parameters, passphrase.span()); };
  auto made = co_await run_on(WorkerPool::blocking(), work);
  co_return made;
}

}  // namespace platter::crypto

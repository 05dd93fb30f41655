#include "tools/run/fw_cfg.h"

#include <algorithm>
#include <cstring>

#include "block/base/bytes.h"

namespace platter::run {
namespace {

constexpr std::uint32_t kDmaError = 1, kDmaRead = 2, kDmaSkip = 4, kDmaSelect = 8, kDmaWrite = 16;
constexpr std::size_t kDmaRequestSize = 16;
constexpr std::uint64_t kDmaSignature = 0x51454d5520434647;  // "QEMU CFG"
constexpr std::size_t kDirectoryEntrySize = 64;
constexpr std::uint16_t kKeyMask = 0xbfff;  // bit 14 only asks for write access

std::vector<std::byte> bytes_of(std::string_view text) {
  std::vector<std::byte> bytes(text.size());
  if (!text.empty()) std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

}  // namespace

FwCfg::FwCfg(const Memory& memory) : memory_(memory) {
  add_item(kSignature, bytes_of("QEMU"));
  add_item(kId, {std::byte{3}, std::byte{0}, std::byte{0}, std::byte{0}});  // ports and DMA
  update_directory();
}

void FwCfg::add_item(std::uint16_t key, std::vector<std::byte> content) {
  MutexLock lock(mutex_);
  put(key, std::move(content));
}

void FwCfg::put(std::uint16_t key, std::vector<std::byte> content) {
  items_.insert_or_assign(key, std::move(content));
}

void FwCfg::add_number(std::uint16_t key, std::uint16_t number) {
  std::vector<std::byte> content(2);
  store_le(content.data(), number);
  add_item(key, std::move(content));
}

Result<void> FwCfg::add_file(std::string_view name, std::vector<std::byte> content) {
  if (name.empty() || name.size() > kMaxName) {
    return fail(EINVAL, "firmware file name '{}' has {} bytes, and 1 to {} fit", name, name.size(),
                kMaxName);
  }
  MutexLock lock(mutex_);
  if (files_.contains(name)) return fail(EEXIST, "firmware file '{}' exists already", name);
  const auto key = static_cast<std::uint16_t>(kFirstFile + files_.size());
  files_.emplace(name, key);
  put(key, std::move(content));
  update_directory();
  return {};
}

Result<void> FwCfg::add_file(std::string_view name, std::string_view text) {
  return add_file(name, bytes_of(text));
}

Result<void> FwCfg::add_file_number(std::string_view name, std::uint64_t number) {
  std::vector<std::byte> content(8);
  store_le(content.data(), number);
  return add_file(name, std::move(content));
}

void FwCfg::update_directory() {
  std::vector<std::byte> directory(4 + files_.size() * kDirectoryEntrySize);
  Writer writer(directory);
  writer.be(static_cast<std::uint32_t>(files_.size()));
  for (const auto& [name, key] : files_) {
    writer.be(static_cast<std::uint32_t>(items_[key].size()));
    writer.be(key);
    writer.zeroes(2);
    writer.bytes(std::as_bytes(std::span(name)));
    writer.zeroes(kMaxName + 1 - name.size());
  }
  put(kFileDirectory, std::move(directory));
}

void FwCfg::select(std::uint16_t key) {
  selected_ = key & kKeyMask;
  position_ = 0;
}

std::byte FwCfg::next_byte() {
  const auto item = items_.find(selected_);
  if (item == items_.end() || position_ >= item->second.size()) return std::byte{0};
  return item->second[position_++];
}

void FwCfg::read(std::uint64_t offset, std::span<std::byte> data) {
  MutexLock lock(mutex_);
  if (offset == 1) {
    for (std::byte& byte : data) byte = next_byte();
    return;
  }
  std::byte signature[8];
  store_be(signature, kDmaSignature);
  for (std::size_t i = 0; i < data.size(); ++i) {
    const std::uint64_t at = offset + i;
    data[i] = at >= 4 && at < 12 ? signature[at - 4] : std::byte{0};
  }
}

void FwCfg::write(std::uint64_t offset, std::span<const std::byte> data) {
  MutexLock lock(mutex_);
  if (offset == 0 && data.size() == 2) {
    select(load_le<std::uint16_t>(data.data()));
  } else if (offset == 4 && data.size() == 4) {
    dma_high_ = load_be<std::uint32_t>(data.data());
  } else if (offset == 4 && data.size() == 8) {
    run_dma(load_be<std::uint64_t>(data.data()));
  } else if (offset == 8 && data.size() == 4) {
    run_dma((std::uint64_t{dma_high_} << 32) | load_be<std::uint32_t>(data.data()));
  }
}

void FwCfg::run_dma(std::uint64_t address) {
  dma_high_ = 0;
  std::byte request[kDmaRequestSize];
  if (!memory_.read(address, request)) return;  // nowhere to put an error
  Reader reader(request);
  const auto control = reader.be<std::uint32_t>();
  const auto length = reader.be<std::uint32_t>();
  const auto target = reader.be<std::uint64_t>();
  if ((control & kDmaSelect) != 0) select(static_cast<std::uint16_t>(control >> 16));

  static const std::vector<std::byte> kNothing;
  const auto found = items_.find(selected_);
  const std::vector<std::byte>& item = found == items_.end() ? kNothing : found->second;
  const std::size_t left = item.size() - std::min(position_, item.size());
  const std::size_t present = std::min<std::size_t>(left, length);
  std::uint32_t status = 0;
  if ((control & kDmaRead) != 0) {
    // Beyond the item's end the content is zeroes.
    auto bytes = memory_.ram_at(target, length);
    if (bytes) {
      std::copy_n(item.begin() + static_cast<std::ptrdiff_t>(item.size() - left), present,
                  bytes->begin());
      std::ranges::fill(bytes->subspan(present), std::byte{0});
      position_ += present;
    } else {
      status = kDmaError;
    }
  } else if ((control & kDmaWrite) != 0) {
    status = kDmaError;  // every item is read-only
  } else if ((control & kDmaSkip) != 0) {
    position_ += present;
  }
  std::byte answer[4];
  store_be(answer, status);
  if (auto place = memory_.ram_at(address, sizeof answer)) {
    std::ranges::copy(answer, place->begin());
  }
}

std::vector<std::byte> e820_table(const Memory& memory) {
  std::vector<std::byte> table;
  for (const Bank& bank : memory.banks()) {
    if (bank.kind != BankKind::kRam) continue;
    std::byte entry[20];
    Writer writer(entry);
    writer.le(bank.address);
    writer.le(bank.size);
    writer.le(std::uint32_t{1});
    table.insert(table.end(), std::begin(entry), std::end(entry));
  }
  return table;
}

}  // namespace platter::run

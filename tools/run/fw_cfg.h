// FwCfg: QEMU's firmware configuration device (specs: fw_cfg.rst), through which SeaBIOS learns
// memory, processors and boot order.
//
// Threads: items are added before the guest runs; read() and write() from any thread afterwards.
// Ownership: owns its items; refers to guest memory for the DMA interface.
// Errors: a DMA request that points outside guest RAM gets the error bit, as the device specifies.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "block/base/mutex.h"
#include "tools/run/bus.h"
#include "tools/run/memory.h"

namespace platter::run {

class FwCfg final : public BusDevice {
 public:
  static constexpr std::uint16_t kBase = 0x510;
  static constexpr std::uint64_t kPorts = 12;  // selector, data, DMA address
  static constexpr std::uint16_t kFileDirectory = 0x19;
  static constexpr std::uint16_t kFirstFile = 0x20;
  static constexpr std::size_t kMaxName = 55;  // bytes of a file name

  // Item keys that firmware reads (from the field's common usage; fw_cfg.rst names the first two).
  static constexpr std::uint16_t kSignature = 0x00;
  static constexpr std::uint16_t kId = 0x01;
  static constexpr std::uint16_t kCpuCount = 0x05;
  static constexpr std::uint16_t kMaxCpus = 0x0f;
  static constexpr std::uint16_t kNuma = 0x0d;
  static constexpr std::uint16_t kBootMenu = 0x0e;

  explicit FwCfg(const Memory& memory);

  void add_item(std::uint16_t key, std::vector<std::byte> content);
  void add_number(std::uint16_t key, std::uint16_t number);
  // EINVAL when the name is too long, EEXIST when it is taken.
  Result<void> add_file(std::string_view name, std::vector<std::byte> content);
  Result<void> add_file(std::string_view name, std::string_view text);
  // 64-bit little-endian content, as firmware reads numbers.
  Result<void> add_file_number(std::string_view name, std::uint64_t number);

  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

 private:
  void select(std::uint16_t key) PLATTER_REQUIRES(mutex_);
  std::byte next_byte() PLATTER_REQUIRES(mutex_);
  void run_dma(std::uint64_t address) PLATTER_REQUIRES(mutex_);
  void put(std::uint16_t key, std::vector<std::byte> content) PLATTER_REQUIRES(mutex_);
  void update_directory() PLATTER_REQUIRES(mutex_);

  const Memory& memory_;
  Mutex mutex_;
  std::map<std::uint16_t, std::vector<std::byte>> items_ PLATTER_GUARDED_BY(mutex_);
  std::map<std::string, std::uint16_t, std::less<>> files_ PLATTER_GUARDED_BY(mutex_);
  std::uint16_t selected_ PLATTER_GUARDED_BY(mutex_) = 0;
  std::size_t position_ PLATTER_GUARDED_BY(mutex_) = 0;
  std::uint32_t dma_high_ PLATTER_GUARDED_BY(mutex_) = 0;
};

// The "etc/e820" file: RAM ranges of the machine (20 bytes each: address, length, type 1).
std::vector<std::byte> e820_table(const Memory& memory);

}  // namespace platter::run

// VmState: the VM state of a qcow2 image, which lies in the guest's address space behind the part
// of the disk that whole L2 tables map (docs/interop/qcow2.txt, "Snapshots").
//
// Threads: any. Owned by the driver.
#pragma once

#include <cstdint>

#include "block/node/abilities.h"

namespace platter::qcow2 {

class Qcow2Driver;

class VmState final : public VmStateAbility {
 public:
  explicit VmState(Qcow2Driver& driver) : driver_(driver) {}

  Task<Result<void>> read(std::uint64_t position, IoVec iov) override;
  // Makes the L1 table longer if need be, with requests held back.
  Task<Result<void>> write(std::uint64_t position, IoVec iov) override;

 private:
  // The guest offset of `length` bytes at `position`; EFBIG where there can be none.
  Result<std::uint64_t> place(std::uint64_t position, std::uint64_t length) const;
  Task<Result<void>> write_sectors(std::uint64_t offset, IoVec iov);
  // How many the L1 table needs for that; EFBIG as place().
  Result<std::uint64_t> l1_entries(std::uint64_t position, std::uint64_t length) const;
  // Makes the L1 table long enough for that; requests are held back.
  Task<Result<void>> reach(std::uint64_t position, std::uint64_t length);

  Qcow2Driver& driver_;
};

}  // namespace platter::qcow2

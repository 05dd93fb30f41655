// The operations that the power-cut rig and the fault loop try, one entry of a list each, and the
// shapes of image on which they are tried. A new operation needs nothing but its entry.
#pragma once

#include <ostream>
#include <span>
#include <string>

#include "block/adapters/memory.h"
#include "powercut/guest.h"

namespace platter::powercut {

struct Shape {
  const char* name;
  unsigned version;       // 2 or 3
  std::uint64_t cluster;  // bytes
  bool lazy;              // lazy refcounts

  std::string create_options() const;
};
std::span<const Shape> all_shapes();

// A bitmap of this name is made, and enabled, at the end of what is done before: where it is not
// flagged as in use it has marked whatever differs from what the disk held then.
inline constexpr const char* kMarks = "marks";

// Passphrases, by the ids of their secrets.
inline constexpr const char* kOldKey = "powercut-old";
inline constexpr const char* kNewKey = "powercut-new";

struct Operation {
  const char* name;
  // What the disk holds before, durably; and what is done then. Either gives the first error.
  Task<Result<void>> (*prepare)(Guest&);
  Task<Result<void>> (*act)(Guest&) = nullptr;
  // Instead of act: an `img` command line; "TOP" stands for the image's options.
  std::span<const char* const> command = {};
  const char* create = "";      // options beside the shape's
  std::uint64_t clusters = 96;  // of the disk
  std::uint64_t tables = 0;     // and as much more as this many L2 tables cover
  // kOverlaid: a qcow2 image on a disk of its own. kChained: the same, which hides from the image
  // what the raw one below it has elsewhere.
  // kRawDisk: a raw image on a disk of its own.
  enum class Backing : std::uint8_t {
    kNone,
    kRaw,
    kRawDisk,
    kOverlaid,
    kChained
  } backing = Backing::kNone;
  enum class Kind : std::uint8_t {
    kUsual,
    kCreate,   // making the image is what is tried
    kReplace,  // the same, where another image was
    kDirty,    // the image was left open by a crash
    kRepair,   // repairing the image is what is tried
  } kind = Kind::kUsual;
  // Done to the image below its back, last of all before.
  void (*damage)(MemoryDisk&, const Shape&, History&) = nullptr;
  bool (*fits)(const Shape&) = nullptr;  // null: every shape
  // Version 2 has no dirty bit: while a snapshot is taken or removed, flags may be missing, which
  // harms nothing and goes with the leaks.
  bool flags_may_lag = false;
  // LUKS, opened with the passphrase kOldKey unless the operation changes that. Its metadata alone
  // lies in the clear.
  bool encrypted = false;
  bool resizes = false;    // so that what is behind the end matters
  bool data_file = false;  // data lie on a disk of their own
  unsigned cost = 1;       // how many times as dear as usual a state is: so many fewer are tried

  bool creates() const { return kind == Kind::kCreate || kind == Kind::kReplace; }
  bool repairs() const { return kind == Kind::kRepair; }
  bool has_middle() const { return backing == Backing::kOverlaid || backing == Backing::kChained; }
  std::uint64_t size(const Shape& shape) const {
    return clusters * shape.cluster + tables * (shape.cluster / 8 * shape.cluster);
  }
};
// How GoogleTest names it.
inline void PrintTo(const Operation& operation, std::ostream* out) { *out << operation.name; }
std::span<const Operation> all_operations();

}  // namespace platter::powercut

// Making new qcow2 images, and telling how large one would be.
//
// The first part is pure: options to a plan, and a plan to the bytes of tables. create() writes the
// tables, makes them durable, and writes the header last, so that a power cut leaves either no
// qcow2 image or a whole one.
//
// Threads: pure functions; create() and measure() run on one executor.
// Errors: with the words of qemu-img 7.2 for the same mistakes; nothing on disk has changed then.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "block/base/error.h"
#include "block/exec/task.h"
#include "block/node/driver.h"
#include "block/node/registry.h"
#include "formats/qcow2/encryption.h"
#include "formats/qcow2/layout.h"

namespace platter::qcow2 {

// What DriverType wants.
std::span<const CreateOption> create_options();
std::span<const CreateOption> amend_options();
Task<Result<void>> create(CreateRequest request);
Task<Result<MeasureResult>> measure(MeasureRequest request);

// A new image, fully described: `header` has every table's place.
struct CreatePlan {
  Header header;
  Preallocation preallocation = Preallocation::kOff;
  Preallocation data_preallocation = Preallocation::kOff;  // of an external data file
  std::uint64_t refcount_blocks = 0;                       // they follow the refcount table
  std::uint64_t refcount_blocks_offset = 0;
  std::uint64_t l2_tables = 0;  // preallocated; contiguous
  std::uint64_t l2_tables_offset = 0;
  std::uint64_t data_clusters = 0;  // preallocated; contiguous
  std::uint64_t data_offset = 0;
  EncryptionPlan encryption;
  // What the header's encryption extension points at, once the key is made.
  std::vector<std::byte> encryption_header;
  std::uint64_t clusters = 0;   // of the file, all of refcount 1
  std::uint64_t file_size = 0;  // bytes; ends with the last table when nothing is preallocated
};

// Takes the options it knows. `size` in bytes.
Result<CreatePlan> plan_create(Options& options, std::uint64_t size);

// Clusters that refcount table and blocks take for an image that has `clusters` clusters besides.
struct RefcountClusters {
  std::uint64_t table = 0;
  std::uint64_t blocks = 0;
};
RefcountClusters refcount_clusters_for(const Geometry& geometry, std::uint64_t clusters);

// Bytes of file that an image of `size` bytes takes when every cluster is allocated.
std::uint64_t fully_allocated_size(const Geometry& geometry, std::uint64_t size);

// Writes a plan into `file` (opened for writing, made for this).
Task<Result<void>> write_image(BlockNode& file, CreatePlan plan);

}  // namespace platter::qcow2

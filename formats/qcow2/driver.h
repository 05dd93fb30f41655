// Qcow2Driver: one open qcow2 image. It joins the parts of the engine:
//
//   L2Tables       guest offset -> mapping
//   ClusterWriter  changes of the mapping
//   Refcounts, HostClusters   who uses which cluster of the file
//   WriteBack      what reaches the disk in which order
//   Snapshots      internal snapshots
//   Bitmaps        persistent dirty bitmaps
//
// Threads: as Driver says. Immutable after open: the parts themselves, options. Everything else is
// inside the parts.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "block/crypto/luks_amend.h"
#include "block/exec/chores.h"
#include "block/node/mapped_driver.h"
#include "block/node/registry.h"
#include "formats/qcow2/bitmaps.h"
#include "formats/qcow2/cluster_writer.h"
#include "formats/qcow2/core.h"
#include "formats/qcow2/encryption.h"
#include "formats/qcow2/host_clusters.h"
#include "formats/qcow2/l2_tables.h"
#include "formats/qcow2/refcounts.h"
#include "formats/qcow2/snapshots.h"
#include "formats/qcow2/vm_state.h"
#include "formats/qcow2/write_back.h"

namespace platter::qcow2 {

// Options of an open image.
struct RuntimeOptions {
  std::uint64_t l2_cache = 0;  // bytes; 0: chosen
  std::uint64_t l2_cache_entry = 0;
  std::uint64_t refcount_cache = 0;
  std::uint64_t cache_clean_interval = 600;  // seconds; 0: never
  std::optional<bool> lazy_refcounts;
  std::optional<bool> pass_discard_request;
  bool pass_discard_snapshot = true;
  bool pass_discard_other = false;
};
// Moves the options that take_runtime_options() knows from `options`.
Options take_runtime_keys(Options& options);
// Takes what it knows; checks sizes against each other.
Result<RuntimeOptions> take_runtime_options(Options& options, const Geometry& geometry,
                                            std::uint64_t l1_entries);

class Qcow2Driver final : public MappedDriver,
                          public CheckAbility,
                          public BackingAbility,
                          public AmendAbility {
 public:
  static Task<Result<std::unique_ptr<Driver>>> open(OpenContext& context);

  Qcow2Driver(const Geometry& geometry, const RuntimeOptions& options);
  ~Qcow2Driver() override;

  // Driver.
  std::uint64_t size() const override { return core_.size.load(std::memory_order_relaxed); }
  Limits limits() const override;
  Task<Result<Extent>> do_extent(std::uint64_t offset, std::uint64_t length) override;
  Task<Result<void>> do_discard(std::uint64_t offset, std::uint64_t length) override;
  Task<Result<void>> do_flush() override;
  Task<Result<void>> do_resize(ResizeRequest request) override;
  Task<Result<void>> do_close() override;
  Task<Result<void>> prepare_reopen(OpenFlags flags) override;
  void commit_reopen() override;
  Result<std::function<Task<Result<void>>()>> plan_change(Options& options) override;
  void abort_reopen() override;
  std::vector<Edge*> children() override;
  BlockNode* backing() override { return core_.backing(); }
  BlockNode* storage() override { return core_.file.get(); }
  FormatInfo info() override;
  SnapshotAbility* snapshots() override { return &snapshots_; }
  VmStateAbility* vm_state() override { return &vm_state_; }
  BitmapAbility* bitmaps() override { return &bitmaps_; }
  CheckAbility* checker() override { return this; }
  BackingAbility* backing_reference() override { return this; }
  AmendAbility* amender() override { return this; }

  // CheckAbility.
  Task<Result<CheckResult>> check(const CheckRequest& request) override;

  // BackingAbility.
  std::string backing_filename() const override;
  std::string backing_format() const override;
  Task<Result<void>> change_backing(std::string filename, std::string format,
                                    std::function<Result<void>()> allowed) override;
  Task<Result<void>> make_empty() override;

  // AmendAbility.
  Task<Result<void>> amend(Options options, bool force,
                           std::function<void(std::uint64_t, std::uint64_t)> progress,
                           const std::atomic<bool>* cancelled) override;

  // For tests.
  Core& core() { return core_; }
  HostClusters& clusters() { return clusters_; }
  TableCache& l2_cache() { return tables_.cache(); }
  std::uint64_t refcount_of(std::uint64_t host_cluster);  // must be in memory

 protected:
  // MappedDriver.
  bool try_map(std::uint64_t offset, std::uint64_t length, bool for_write,
               Mapping& mapping) override;
  Task<Result<Mapping>> map(std::uint64_t offset, std::uint64_t length, bool for_write) override;
  Task<Result<WritePlan>> plan_write(std::uint64_t offset, std::uint64_t length) override;
  void publish(WritePlan& plan) override;
  void abandon(WritePlan& plan) override;
  std::uint64_t zero_unit() const override { return unit_size(core_.geometry); }
  Task<Result<void>> zero_units(std::uint64_t offset, std::uint64_t length,
                                bool may_unmap) override;
  Task<Result<void>> may_zero_units(std::uint64_t offset, std::uint64_t length,
                                    bool may_unmap) override;
  bool can_hide_units() const override;
  Task<Result<void>> hide_units(std::uint64_t offset, std::uint64_t length) override;
  bool may_have_holes() override;
  Task<bool> regain_space() override;
  bool note_change(std::uint64_t offset, std::uint64_t length) override {
    return bitmaps_.note(offset, length);
  }
  Task<Result<void>> prepare_change() override { return bitmaps_.prepare(); }
  Task<Result<void>> write_packed(std::uint64_t offset, IoVec iov) override;
  Result<void> unpack(std::span<const std::byte> packed, std::span<std::byte> out) override;

 private:
  friend class Snapshots;
  friend class VmState;
  friend class Bitmaps;
  Task<Result<void>> start(OpenContext& context, Header header);
  // Reads tables again from what core_.header says; nothing is running.
  Task<Result<void>> load_tables();
  // Finds the key of an encrypted image, unless nothing but metadata will be read.
  Task<Result<void>> open_encryption(OpenContext& context, const Header& header);
  void list_metadata();
  std::string_view metadata_name(std::uint64_t cluster);
  void choose_discards(bool unmap);
  Task<Result<void>> begin_writing();
  // Writes everything back and frees what can be freed; nothing is running. Requests that are held
  // back have been in flight for a moment, until they saw that: what is freed waits for those, too.
  enum class Requests : bool { kNone, kHeld };
  Task<Result<void>> settle(WriteBack::Flush flush = WriteBack::Flush::kOwn,
                            Requests requests = Requests::kNone);
  Task<Result<void>> end_writing();
  // The same error with the name of each cache that could not be written.
  Error name_unwritten(const Error& reason) const;
  // Runs `work` with requests held back and everything written back; one at a time. With `reload`
  // nothing is being freed meanwhile, and all tables are loaded again from the file afterwards;
  // when `work` then fails after it began to change counts (`began_` is set), the image stays
  // marked dirty, so that its next opening repairs it.
  Task<Result<void>> exclusively(const std::function<Task<Result<void>>()>& work, bool reload);
  // Runs `work` while requests go on; one at a time. Nothing is freed meanwhile but by `work`. It
  // sets needs_repair_ when it leaves counts and flags that disagree.
  Task<Result<void>> alongside(const std::function<Task<Result<void>>()>& work);
  // Before counts or the flags "refcount is one" change on disk: an interruption is repaired.
  Task<Result<void>> begin_changing_counts();
  Result<void> may_operate() const;
  // Whether refcounts are written late, as the options or else the image says. Not so while
  // operations_ is held, or when writing ends.
  bool wants_lazy() const;
  Task<Result<void>> check_now(const CheckRequest& request, Result<CheckResult>* result);
  // Writes back when discards have left much space waiting.
  Task<Result<void>> relieve();
  bool too_much_unsettled();
  // Gives up what the caches hold and nobody used since the last time. On the thread of chores,
  // whatever requests and operations do meanwhile: the caches' mutex is all that it needs.
  void shed_unused();
  // Does so at intervals, as options_ say, from the first table that is loaded on.
  void start_shedding();
  Task<Result<Extent>> refuse_extents();
  Task<Result<Mapping>> refuse_writing();
  Task<Result<void>> write_one_packed(std::uint64_t offset, IoVec iov);

  // amend.cpp and expand_zeroes.cpp; what ends in _now with requests held back.
  using Work = Task<Result<void>> (Qcow2Driver::*)(std::uint64_t value);
  Task<Result<void>> amend_alone(Work work, std::uint64_t value,
                                 const std::atomic<bool>* cancelled);
  Task<Result<void>> upgrade_now(std::uint64_t version);
  Task<Result<void>> downgrade_now(std::uint64_t version);
  Task<Result<void>> change_refcount_width_now(std::uint64_t order);
  Task<Result<void>> change_lazy_refcounts_now(std::uint64_t on);
  // Changes the header as it is then, in memory and durably: others change it meanwhile.
  Task<Result<void>> change_header(const std::function<void(Header&)>& change);
  Result<void> may_downgrade() const;
  // One at a time with other operations, but with requests going on.
  Task<Result<void>> amend_key_slots(crypto::LuksAmendment amendment, bool force);
  Task<Result<void>> expand_zeroes();
  struct Expansion;
  Task<Result<void>> find_zero_clusters(Expansion& expansion);
  Task<Result<void>> place_zero_clusters(Expansion& expansion);
  Task<Result<void>> replace_zero_clusters(Expansion& expansion);
  Task<Result<void>> publish_expansion(Expansion& expansion);

  // make_empty() where data lie in a file of their own, with requests held back.
  Task<Result<void>> empty_data_file_now();

  // resize.cpp, with requests held back.
  Task<Result<void>> resize_now(const ResizeRequest& request);
  Task<Result<void>> cut_data_file(const ResizeRequest& request);
  Task<Result<void>> resize_data_file(const ResizeRequest& request);
  Task<Result<void>> grow_l1(std::uint64_t entries);
  void shrink_l1(std::uint64_t entries);
  Task<Result<void>> set_size(std::uint64_t size, Bitmaps::Change& bitmaps);
  Task<Result<void>> grow_to(const ResizeRequest& request, Bitmaps::Change& bitmaps);
  Task<Result<void>> take_back_space(std::uint64_t from, std::uint64_t to);
  Task<Result<void>> drop_vm_state();
  Task<Result<void>> clear_tail(std::uint64_t from);
  std::uint64_t shown_between(std::uint64_t from, std::uint64_t to) const;
  // Makes it read as zeroes, before the disk reaches there.
  Task<Result<void>> hide_backing(std::uint64_t from, std::uint64_t to,
                                  const std::atomic<bool>* cancelled);
  // What lies behind the new end is the disk's no more.
  Task<Result<void>> take_away(const ResizeRequest& request);
  Task<Result<void>> preallocate(const ResizeRequest& request, Preallocation mode);
  Task<Result<void>> cut_file();

  Core core_;
  RuntimeOptions options_;                  // changed under operations_, with requests held back
  std::optional<crypto::LuksHeader> luks_;  // after open changed under operations_
  // Immutable after open.
  std::optional<std::string> key_secret_;  // id
  std::unique_ptr<DataTransform> cipher_;
  Refcounts refcounts_;
  HostClusters clusters_;
  L2Tables tables_;
  WriteBack write_back_;
  ClusterWriter writer_;
  Snapshots snapshots_;
  VmState vm_state_;
  Bitmaps bitmaps_;
  // Whether data clusters may be holes of the file (as after preallocating metadata); found out
  // when somebody first asks for extents.
  enum class SparseFile : std::uint8_t { kUnknown, kYes, kNo };
  std::atomic<SparseFile> sparse_file_{SparseFile::kUnknown};
  AsyncMutex regaining_;                       // one regain_space() at a time
  AsyncMutex operations_;                      // resizes, snapshots, checks: one at a time
  bool began_ = false;                         // under operations_
  TableBounds bounds_ = TableBounds::kInFile;  // immutable after open
  bool needs_repair_ = false;                  // under operations_
  // runtime_options.cpp
  Task<Result<void>> change_options(Options given, RuntimeOptions options);
  Task<Result<void>> take_options(const Options& given, const RuntimeOptions& options);
  Options given_;                                 // what options_ was made of
  bool discard_unmap_ = false;                    // the last choose_discards()
  const std::atomic<bool>* cancelled_ = nullptr;  // of the amendment; under operations_
  Task<Result<void>> prepare_mode(OpenFlags flags);
  // Between prepare_reopen() and its end: beside no operation, with requests held back.
  struct Reopening {
    OpenFlags flags;
    AsyncMutex::Guard alone;  // of operations_
  };
  std::optional<Reopening> reopening_;
  Chore shedding_;  // the last member: it ends before anything it sheds from
};

}  // namespace platter::qcow2

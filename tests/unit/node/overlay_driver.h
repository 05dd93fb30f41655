// A little format for the node's tests: a header, and a window of its file with a backing node
// behind the blocks that were never written.
//
//   0  "TESTOVL\n"   8  size (8 bytes, little-endian)   16  backing name, 0   1024 format, 0
//   4096  the disk; which blocks are present is kept in memory
#pragma once

#include <memory>
#include <set>
#include <string>

#include "block/node/graph.h"

namespace platter::testing {

class OverlayDriver : public Driver {
 public:
  static constexpr std::uint64_t kHeader = 4096;
  static constexpr std::uint64_t kBlock = 4096;

  OverlayDriver(Edge file, Edge backing, std::uint64_t size, std::string backing_name)
      : file_(std::move(file)),
        backing_(std::move(backing)),
        size_(size),
        backing_name_(std::move(backing_name)) {}

  std::uint64_t size() const override { return size_; }
  Limits limits() const override {
    Limits limits;
    limits.request_alignment = kBlock;
    return limits;
  }
  Task<Result<void>> do_read(std::uint64_t offset, IoVec iov, ReadFlags flags) override;
  Task<Result<void>> do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) override;
  Task<Result<void>> do_flush() override { return file_->flush(); }
  Task<Result<Extent>> do_extent(std::uint64_t offset, std::uint64_t length) override;
  Task<Result<void>> do_resize(ResizeRequest request) override {
    size_ = request.size;
    co_return {};
  }
  Task<Result<void>> do_close() override {
    ++closed;
    co_return {};
  }
  Task<Result<void>> prepare_reopen(OpenFlags flags) override {
    if (refuse_reopen) co_return fail(EBUSY, "not now");
    prepared_read_only = flags.read_only;
    // What a format does that holds metadata back.
    if (flags.read_only) {
      auto flushed = co_await file_->flush();
      PLATTER_CO_TRY(flushed);
    }
    co_return {};
  }
  void commit_reopen() override { ++commits; }
  void abort_reopen() override { ++aborts; }
  std::vector<Edge*> children() override {
    if (backing_) return {&file_, &backing_};
    return {&file_};
  }
  BlockNode* backing() override { return backing_.get(); }
  BlockNode* storage() override { return file_.get(); }

  static inline int closed = 0;
  static inline bool refuse_reopen = false;
  bool prepared_read_only = false;
  int commits = 0;
  int aborts = 0;

 private:
  Edge file_;
  Edge backing_;
  std::uint64_t size_;
  std::string backing_name_;
  std::set<std::uint64_t> present_;
};

// Makes such an image as the memory disk `name` ("memory:NAME").
void make_overlay_image(const std::string& name, std::uint64_t size, std::string_view backing,
                        std::string_view format = "testovl");
// A node of the format without a header, over `file` and (if any) `backing`.
Task<Result<NodePtr>> make_overlay_node(std::string node_name, NodePtr file, NodePtr backing,
                                        std::uint64_t size);

}  // namespace platter::testing

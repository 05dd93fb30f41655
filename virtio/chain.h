// Chain: one buffer that the driver made available, validated and turned into host memory; what a
// ring of any layout (split today) hands to a device.
//
// Threads: belongs to its queue's executor.
// Ownership: the segments refer to guest memory; the Chain owns only their list, whose memory is
// kept from request to request.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "block/exec/iovec.h"

namespace platter::virtio {

class Chain {
 public:
  // Host segments a chain may have; what readv and writev take at once (IOV_MAX).
  static constexpr unsigned kMaxSegments = 1024;

  // What the device may read, then what it may write, in the driver's order. Valid until clear().
  IoVec readable() const { return IoVec(std::span(segments_).first(readable_segments_)); }
  IoVec writable() const { return IoVec(std::span(segments_).subspan(readable_segments_)); }

  // The ring's name for this buffer: the head descriptor of a split ring.
  std::uint16_t id() const { return id_; }
  // Entries of the ring it occupies.
  std::uint16_t descriptors() const { return descriptors_; }

  // For the ring -----------------------------------------------------------------------------

  void clear() {
    segments_.clear();
    readable_segments_ = 0;
    descriptors_ = 0;
  }
  void identify(std::uint16_t id, std::uint16_t descriptors) {
    id_ = id;
    descriptors_ = descriptors;
  }
  bool has_writable() const { return segments_.size() != readable_segments_; }
  // Readable segments come first. Neighbours in host memory become one segment. False when the
  // chain would have more than kMaxSegments.
  bool add(std::span<std::byte> bytes, bool writable) {
    const bool mergeable = !segments_.empty() && has_writable() == writable;
    if (mergeable) {
      iovec& last = segments_.back();
      if (static_cast<std::byte*>(last.iov_base) + last.iov_len == bytes.data()) {
        last.iov_len += bytes.size();
        return true;
      }
    }
    if (segments_.size() == kMaxSegments) return false;
    segments_.push_back(iovec{bytes.data(), bytes.size()});
    if (!writable) readable_segments_ = segments_.size();
    return true;
  }

 private:
  std::vector<iovec> segments_;
  std::size_t readable_segments_ = 0;
  std::uint16_t id_ = 0;
  std::uint16_t descriptors_ = 0;
};

}  // namespace platter::virtio

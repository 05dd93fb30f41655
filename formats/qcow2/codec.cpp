#include "formats/qcow2/codec.h"

#include <isa-l/igzip_lib.h>
#include <libdeflate.h>
#include <zstd.h>

#include <algorithm>
#include <memory>
#include <vector>

namespace platter::qcow2 {

namespace {

// zstd's fastest standard level: a tenth larger than its default, half as long again as fast.
constexpr int kZstdLevel = 1;
constexpr std::uint16_t kWindowBits = 12;

struct FreeInflater {
  void operator()(libdeflate_decompressor* d) const { libdeflate_free_decompressor(d); }
};
struct FreeZstdIn {
  void operator()(ZSTD_DCtx* c) const { ZSTD_freeDCtx(c); }
};
struct FreeZstdOut {
  void operator()(ZSTD_CCtx* c) const { ZSTD_freeCCtx(c); }
};

libdeflate_decompressor* inflater() {
  thread_local std::unique_ptr<libdeflate_decompressor, FreeInflater> state(
      libdeflate_alloc_decompressor());
  return state.get();
}
ZSTD_DCtx* zstd_in() {
  thread_local std::unique_ptr<ZSTD_DCtx, FreeZstdIn> state(ZSTD_createDCtx());
  return state.get();
}
ZSTD_CCtx* zstd_out() {
  thread_local std::unique_ptr<ZSTD_CCtx, FreeZstdOut> state(ZSTD_createCCtx());
  return state.get();
}

Result<void> inflate_zlib(std::span<const std::byte> packed, std::span<std::byte> out) {
  libdeflate_decompressor* state = inflater();
  if (!state) return fail_errno(ENOMEM);
  std::size_t used = 0;
  std::size_t made = 0;
  switch (libdeflate_deflate_decompress_ex(state, packed.data(), packed.size(), out.data(),
                                           out.size(), &used, &made)) {
    case LIBDEFLATE_SUCCESS:
      break;
    case LIBDEFLATE_INSUFFICIENT_SPACE:
      return fail(EIO, "compressed cluster expands to more than {} bytes", out.size());
    default:
      return fail(EIO, "compressed cluster is not a valid deflate stream of at most {} bytes",
                  packed.size());
  }
  if (made != out.size()) {
    return fail(EIO, "compressed cluster holds {} bytes instead of {}", made, out.size());
  }
  return {};
}

// Frames are unpacked straight into `out`, so that no window is allocated, whatever size a frame
// header claims.
Result<void> inflate_zstd(std::span<const std::byte> packed, std::span<std::byte> out) {
  ZSTD_DCtx* state = zstd_in();
  if (!state) return fail_errno(ENOMEM);
  const std::size_t whole = out.size();
  while (!out.empty()) {
    const std::size_t frame = ZSTD_findFrameCompressedSize(packed.data(), packed.size());
    if (ZSTD_isError(frame) != 0) {
      return fail(EIO, "compressed cluster is not a whole zstd frame: {}",
                  ZSTD_getErrorName(frame));
    }
    const std::size_t made =
        ZSTD_decompressDCtx(state, out.data(), out.size(), packed.data(), frame);
    if (ZSTD_isError(made) != 0) {
      return fail(EIO, "compressed cluster does not unpack into {} bytes: {}", whole,
                  ZSTD_getErrorName(made));
    }
    packed = packed.subspan(frame);
    out = out.subspan(made);
  }
  return {};
}

Result<std::size_t> deflate_zlib(std::span<const std::byte> cluster, std::span<std::byte> out) {
  thread_local std::vector<std::uint8_t> level_buffer(ISAL_DEF_LVL1_DEFAULT);
  thread_local auto stream = std::make_unique<isal_zstream>();
  isal_deflate_stateless_init(stream.get());
  stream->level = 1;
  stream->level_buf = level_buffer.data();
  stream->level_buf_size = static_cast<std::uint32_t>(level_buffer.size());
  stream->hist_bits = kWindowBits;
  stream->gzip_flag = IGZIP_DEFLATE;
  stream->flush = NO_FLUSH;
  stream->end_of_stream = 1;
  // The library takes input by non-const pointer and only reads it.
  stream->next_in = reinterpret_cast<std::uint8_t*>(const_cast<std::byte*>(cluster.data()));
  stream->avail_in = static_cast<std::uint32_t>(cluster.size());
  stream->next_out = reinterpret_cast<std::uint8_t*>(out.data());
  stream->avail_out = static_cast<std::uint32_t>(out.size());
  switch (isal_deflate_stateless(stream.get())) {
    case COMP_OK:
      return out.size() - stream->avail_out;
    case STATELESS_OVERFLOW:
      return std::size_t{0};
    default:
      return fail(EIO, "deflate failed on a cluster of {} bytes", cluster.size());
  }
}

Result<std::size_t> deflate_zstd(std::span<const std::byte> cluster, std::span<std::byte> out) {
  ZSTD_CCtx* state = zstd_out();
  if (!state) return fail_errno(ENOMEM);
  const std::size_t made =
      ZSTD_compressCCtx(state, out.data(), out.size(), cluster.data(), cluster.size(), kZstdLevel);
  // What does not fit is the only failure that one whole buffer can meet.
  if (ZSTD_isError(made) != 0) return std::size_t{0};
  return made;
}

}  // namespace

Result<void> inflate_cluster(CompressionType type, std::span<const std::byte> packed,
                             std::span<std::byte> out) {
  return type == CompressionType::kZlib ? inflate_zlib(packed, out) : inflate_zstd(packed, out);
}

Result<std::size_t> deflate_cluster(CompressionType type, std::span<const std::byte> cluster,
                                    std::span<std::byte> out) {
  if (cluster.empty()) return std::size_t{0};
  out = out.first(std::min(out.size(), cluster.size() - 1));
  return type == CompressionType::kZlib ? deflate_zlib(cluster, out) : deflate_zstd(cluster, out);
}

}  // namespace platter::qcow2

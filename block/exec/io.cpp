#include "block/exec/executor.h"

namespace platter {

namespace io {
namespace {
std::uint64_t address_of(const void* p) { return reinterpret_cast<std::uintptr_t>(p); }
}  // namespace

IoOp readv(int fd, const iovec* iov, unsigned count, std::uint64_t offset, int rw_flags) {
  IoOp op;
  op.opcode = IORING_OP_READV;
  op.fd = fd;
  op.address = address_of(iov);
  op.length = count;
  op.offset = offset;
  op.op_flags = static_cast<std::uint32_t>(rw_flags);
  return op;
}
IoOp writev(int fd, const iovec* iov, unsigned count, std::uint64_t offset, int rw_flags) {
  IoOp op = readv(fd, iov, count, offset, rw_flags);
  op.opcode = IORING_OP_WRITEV;
  return op;
}
IoOp read(int fd, void* data, unsigned length, std::uint64_t offset) {
  IoOp op;
  op.opcode = IORING_OP_READ;
  op.fd = fd;
  op.address = address_of(data);
  op.length = length;
  op.offset = offset;
  return op;
}
IoOp write(int fd, const void* data, unsigned length, std::uint64_t offset) {
  IoOp op = read(fd, nullptr, length, offset);
  op.opcode = IORING_OP_WRITE;
  op.address = address_of(data);
  return op;
}
IoOp fsync(int fd, bool data_only) {
  IoOp op;
  op.opcode = IORING_OP_FSYNC;
  op.fd = fd;
  op.op_flags = data_only ? IORING_FSYNC_DATASYNC : 0;
  return op;
}
IoOp fallocate(int fd, int mode, std::uint64_t offset, std::uint64_t length) {
  // The SQE carries the mode in `len` and the length in `addr`.
  IoOp op;
  op.opcode = IORING_OP_FALLOCATE;
  op.fd = fd;
  op.length = static_cast<std::uint32_t>(mode);
  op.address = length;
  op.offset = offset;
  return op;
}
IoOp poll(int fd, unsigned events) {
  IoOp op;
  op.opcode = IORING_OP_POLL_ADD;
  op.fd = fd;
  op.op_flags = events;
  return op;
}
IoOp timeout(const __kernel_timespec* when) {
  IoOp op;
  op.opcode = IORING_OP_TIMEOUT;
  op.address = address_of(when);
  op.length = 1;
  return op;
}
IoOp cancel(const IoOp& target) {
  IoOp op;
  op.opcode = IORING_OP_ASYNC_CANCEL;
  op.address = address_of(&target);
  return op;
}
}  // namespace io

}  // namespace platter

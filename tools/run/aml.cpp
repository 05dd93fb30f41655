#include "tools/run/aml.h"

#include <concepts>
#include <utility>

#include "tools/run/table_bytes.h"

namespace platter::run::aml {
namespace {

constexpr std::uint8_t kZero = 0x00, kOne = 0x01, kName = 0x08, kByte = 0x0a, kWord = 0x0b,
                       kDWord = 0x0c, kString = 0x0d, kQWord = 0x0e, kScope = 0x10, kBuffer = 0x11,
                       kPackage = 0x12, kExtended = 0x5b, kDevice = 0x82;
constexpr std::uint8_t kIrq = 0x22, kIo = 0x47, kEnd = 0x79, kMemory32 = 0x86, kDWordSpace = 0x87,
                       kWordSpace = 0x88, kExtendedIrq = 0x89;
constexpr std::uint8_t kSpaceMemory = 0, kSpaceIo = 1, kSpaceBus = 2;
constexpr std::uint8_t kFixedProducer = 0x0c;  // both ends fixed, positive decoding
constexpr std::uint8_t kWritable = 1, kEntireRange = 3;

template <std::unsigned_integral T>
Bytes prefixed(std::uint8_t prefix, T value) {
  TableBytes bytes;
  bytes.put(prefix);
  bytes.put(value);
  return std::move(bytes).bytes();
}

// PkgLength (section 20.2.4): of itself and what follows; six bits in one byte, else four bits and
// one to three bytes, whose number is in the two highest bits.
void put_package_length(TableBytes& bytes, std::size_t content) {
  if (content + 1 < 0x40) {
    bytes.put(static_cast<std::uint8_t>(content + 1));
    return;
  }
  unsigned more = 1;
  while (content + 1 + more >= std::size_t{1} << (4 + 8 * more)) ++more;
  const std::size_t length = content + 1 + more;
  bytes.put(static_cast<std::uint8_t>(more << 6 | (length & 0xf)));
  for (unsigned i = 0; i < more; ++i) bytes.put(static_cast<std::uint8_t>(length >> (4 + 8 * i)));
}

Bytes enclosed(std::span<const std::uint8_t> opcode, std::span<const std::byte> head,
               const Bytes& body) {
  TableBytes bytes;
  for (const std::uint8_t byte : opcode) bytes.put(byte);
  put_package_length(bytes, head.size() + body.size());
  bytes.append(head);
  bytes.append(body);
  return std::move(bytes).bytes();
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

template <std::unsigned_integral T>
Bytes window(std::uint8_t descriptor, std::uint8_t kind, std::uint8_t flags, T first, T last) {
  TableBytes bytes;
  bytes.put(descriptor);
  bytes.put(static_cast<std::uint16_t>(3 + 5 * sizeof(T)));
  bytes.put(kind);
  bytes.put(kFixedProducer);
  bytes.put(flags);
  bytes.put(T{0});  // granularity
  bytes.put(first);
  bytes.put(last);
  bytes.put(T{0});  // translation
  bytes.put(static_cast<T>(last - first + 1));
  return std::move(bytes).bytes();
}

}  // namespace

Bytes join(const std::vector<Bytes>& parts) {
  TableBytes bytes;
  for (const Bytes& part : parts) bytes.append(part);
  return std::move(bytes).bytes();
}

Bytes integer(std::uint64_t value) {
  if (value <= 1) {
    TableBytes bytes;
    bytes.put(value == 0 ? kZero : kOne);
    return std::move(bytes).bytes();
  }
  if (value <= 0xff) return prefixed(kByte, static_cast<std::uint8_t>(value));
  if (value <= 0xffff) return prefixed(kWord, static_cast<std::uint16_t>(value));
  if (value <= 0xffffffff) return prefixed(kDWord, static_cast<std::uint32_t>(value));
  return prefixed(kQWord, value);
}

Bytes text(std::string_view value) {
  TableBytes bytes;
  bytes.put(kString);
  bytes.append(value);
  bytes.put(std::uint8_t{0});
  return std::move(bytes).bytes();
}

Bytes buffer(const Bytes& content) {
  return enclosed({{kBuffer}}, integer(content.size()), content);
}

Bytes package(const std::vector<Bytes>& elements) {
  const std::byte count[] = {static_cast<std::byte>(elements.size())};
  return enclosed({{kPackage}}, count, join(elements));
}

Bytes eisa_id(std::string_view id) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 3; ++i) value = value << 5 | (static_cast<unsigned>(id[i]) & 0x1f);
  for (std::size_t i = 3; i < 7; ++i) {
    const auto digit = static_cast<unsigned>(id[i]);
    value = value << 4 | (digit <= '9' ? digit - '0' : digit - 'A' + 10);
  }
  TableBytes bytes;
  bytes.put(kDWord);
  bytes.put(__builtin_bswap32(value));  // the one number here that goes high byte first
  return std::move(bytes).bytes();
}

Bytes name(std::string_view name, const Bytes& value) {
  TableBytes bytes;
  bytes.put(kName);
  bytes.append(name);
  bytes.append(value);
  return std::move(bytes).bytes();
}

Bytes scope(std::string_view name, const Bytes& body) {
  return enclosed({{kScope}}, bytes_of(name), body);
}

Bytes device(std::string_view name, const Bytes& body) {
  return enclosed({{kExtended, kDevice}}, bytes_of(name), body);
}

Bytes resources(const std::vector<Bytes>& descriptors) {
  TableBytes list(join(descriptors));
  list.put(kEnd);
  list.put(std::uint8_t{0});  // no checksum
  return buffer(std::move(list).bytes());
}

Bytes io_ports(std::uint16_t first, std::uint8_t count) {
  TableBytes bytes;
  bytes.put(kIo);
  bytes.put(std::uint8_t{1});  // decodes 16 bits
  bytes.put(first);
  bytes.put(first);
  bytes.put(std::uint8_t{1});  // alignment
  bytes.put(count);
  return std::move(bytes).bytes();
}

Bytes isa_interrupt(unsigned irq) { return prefixed(kIrq, static_cast<std::uint16_t>(1U << irq)); }

Bytes edge_interrupt(std::uint32_t gsi) {
  constexpr std::uint8_t kConsumer = 1, kEdge = 2;
  TableBytes bytes;
  bytes.put(kExtendedIrq);
  bytes.put(std::uint16_t{6});
  bytes.put(std::uint8_t{kConsumer | kEdge});
  bytes.put(std::uint8_t{1});  // one number
  bytes.put(gsi);
  return std::move(bytes).bytes();
}

Bytes memory(std::uint32_t base, std::uint32_t size) {
  TableBytes bytes;
  bytes.put(kMemory32);
  bytes.put(std::uint16_t{9});
  bytes.put(kWritable);
  bytes.put(base);
  bytes.put(size);
  return std::move(bytes).bytes();
}

Bytes bus_window(std::uint16_t first, std::uint16_t last) {
  return window(kWordSpace, kSpaceBus, 0, first, last);
}

Bytes io_window(std::uint16_t first, std::uint16_t last) {
  return window(kWordSpace, kSpaceIo, kEntireRange, first, last);
}

Bytes memory_window(std::uint32_t first, std::uint32_t last) {
  return window(kDWordSpace, kSpaceMemory, kWritable, first, last);
}

}  // namespace platter::run::aml

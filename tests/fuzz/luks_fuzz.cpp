// Fuzzes the LUKS header parser, and secrets' texts. The first byte chooses: the input as a header;
// a valid header with some of its bytes changed; the input as base64.
#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>

#include "block/crypto/luks_header.h"
#include "block/crypto/secret.h"
#include "fuzz/require.h"

namespace platter::crypto {
namespace {

void parse(std::span<const std::byte> bytes, std::uint64_t area) {
  const auto header = parse_luks_header(bytes, area);
  if (!header) {
    require(!header.error().message().empty(), "errors have a text");
    return;
  }
  require(header->payload_offset() <= area, "the payload begins inside");
  std::uint64_t iterations = header->iterations;
  for (const LuksSlot& slot : header->slots) {
    require(slot.offset() >= kLuksKeyAreaOffset, "slots lie behind the header");
    require(slot.offset() + header->material_bytes() <= header->payload_offset(),
            "slots lie before the payload");
    if (slot.active) iterations += slot.iterations;
  }
  require(iterations <= kLuksMaxHashes, "iterations are bounded");
  require(header->key_bytes <= kLuksMaxKeyBytes, "keys are bounded");
  const auto cipher = header->cipher();
  if (cipher) require(cipher->key_bytes() == header->key_bytes, "the key fits the cipher");
  static_cast<void>(header->algorithm());
  const auto again = parse_luks_header(encode_luks_header(*header), area);
  require(again && *again == *header, "a header that was written reads back the same");
}

void fuzz(std::span<const std::byte> input) {
  if (input.empty()) return;
  const auto choice = std::to_integer<unsigned>(input[0]) % 3;
  input = input.subspan(1);
  if (choice == 0) {
    parse(input, std::uint64_t{1} << 40);
  } else if (choice == 1) {
    static const LuksHeader valid = [] {
      LuksHeader header = *plan_luks_header(CipherSpec{}, "sha256");
      header.iterations = 1000;
      header.slots[0].active = true;
      header.slots[0].iterations = 1000;
      return header;
    }();
    auto bytes = encode_luks_header(valid);
    for (; input.size() >= 3; input = input.subspan(3)) {
      const std::size_t at =
          std::to_integer<std::size_t>(input[0]) << 8 | std::to_integer<std::size_t>(input[1]);
      bytes[at % bytes.size()] = input[2];
    }
    parse(bytes, valid.payload_offset());
  } else {
    const auto* const text = reinterpret_cast<const char*>(input.data());
    const auto decoded = decode_base64(std::string_view(text, input.size()));
    if (decoded) require(decoded->size() <= input.size(), "base64 shrinks");
  }
}

}  // namespace
}  // namespace platter::crypto

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  platter::crypto::fuzz(std::as_bytes(std::span(data, size)));
  return 0;
}

// Aml: the few forms of ACPI machine language (ACPI 6.4 chapter 20) that describe a fixed machine:
// named constants, packages, buffers, devices and resource lists; no methods.
//
// Threads: pure functions.
// Ownership: everything is a vector of bytes that the caller puts where it belongs.
// Errors: none; names and sizes come from this program, and their limits are the callers' duty.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace platter::run::aml {

using Bytes = std::vector<std::byte>;

// One after the other.
Bytes join(const std::vector<Bytes>& parts);

// Data objects. integer() takes the shortest form that holds the value; package() at most 255
// elements.
Bytes integer(std::uint64_t value);
Bytes text(std::string_view value);
Bytes buffer(const Bytes& content);
Bytes package(const std::vector<Bytes>& elements);
// The compressed id of an EISA device ("PNP0A03"): three letters, four hexadecimal digits.
Bytes eisa_id(std::string_view id);

// Terms. Names are single segments of four characters, perhaps after a backslash.
Bytes name(std::string_view name, const Bytes& value);
Bytes scope(std::string_view name, const Bytes& body);
Bytes device(std::string_view name, const Bytes& body);

// Resource descriptors (section 6.4), to be joined and given to resources(), which ends the list.
Bytes resources(const std::vector<Bytes>& descriptors);
// Ports that the device itself answers at.
Bytes io_ports(std::uint16_t first, std::uint8_t count);
// An ISA interrupt: edge-triggered, active high, not shared.
Bytes isa_interrupt(unsigned irq);
// Any interrupt, by its global number: edge-triggered, active high, not shared.
Bytes edge_interrupt(std::uint32_t gsi);
Bytes memory(std::uint32_t base, std::uint32_t size);
// What a bridge passes on: bus numbers, ports, memory that may not be cached. `last` is included.
Bytes bus_window(std::uint16_t first, std::uint16_t last);
Bytes io_window(std::uint16_t first, std::uint16_t last);
Bytes memory_window(std::uint32_t first, std::uint32_t last);

}  // namespace platter::run::aml

// Formats that other programs guess from the start of a file and for which there is no driver here:
// a file that begins like one of them is not to be taken for a raw disk, and a guest is not to make
// a raw disk of guessed format look like one.
//
// Threads: any; a pure function. Bytes of any number and content are fine.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

namespace platter {

// The name of the format, as QEMU calls it, whose header or descriptor `head` begins with; nothing
// when it is none of them. (A dmg image has no header: it goes by its file's name, where one is
// given.) Registered drivers' probes are to be asked first: one of them may know the format.
std::optional<std::string_view> foreign_format(std::span<const std::byte> head,
                                               std::string_view filename = {});

}  // namespace platter

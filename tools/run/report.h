// report(): a line to the user from a thread that must not wait: requests, locks and the machine's
// end would wait with it for a reader that does not read.
//
// Threads: any; lines do not mix.
// Errors: none; a line that could not be written at once is lost.
#pragma once

#include <string_view>

namespace platter::run {

// Writes the line and its end to `fd` if that takes it now; gives whether it did. More than 4 KiB
// are cut.
bool report(int fd, std::string_view line);

}  // namespace platter::run

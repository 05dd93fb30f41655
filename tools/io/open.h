// How an image is opened: what the options of the program and those of the command `open` say.
// Threads: the control executor.
#pragma once

#include <optional>
#include <string>

#include "block/exec/task.h"
#include "block/node/driver.h"
#include "block/node/options.h"
#include "tools/io/session.h"

namespace platter::io_tool {

struct OpenSpec {
  std::optional<std::string> filename;  // nothing: the options name it
  Options options;
  // What qemu-io does when nothing is said: discards go through, every write is durable.
  OpenFlags flags{.read_only = false, .writethrough = true, .discard_unmap = true};
  bool snapshot = false;      // -s: write to a temporary overlay
  bool copy_on_read = false;  // -C
  bool native_aio = false;    // -k, -i native
};

// Reports what is wrong and gives false.
bool set_cache(const Session& session, OpenFlags& flags, std::string_view mode);

// Takes an option that the program and the command `open` share (s n C r k i: t: d: U), with
// getopt()'s optarg. False: it will not do, which has been reported; nothing: it is another option.
std::optional<bool> take_open_option(const Session& session, OpenSpec& spec, int letter);

// Takes an object of --object; what it gives is an exit status with which there is nothing more to
// do, after "help" or a mistake, which it has reported.
std::optional<int> take_object(Session& session, std::string_view text);

// Opens it as the session's image, or reports why not.
Task<bool> open_image(Session& session, OpenSpec spec);

}  // namespace platter::io_tool

// Entry point of `platter run`.
// Threads: the main thread, once.
#pragma once

#include <string>

namespace platter::run {

// `program`: the name it was called by, for messages and help. `argv[0]` is not looked at. Gives
// the process's exit code (docs/run.md).
int run_main(std::string program, int argc, char** argv);

}  // namespace platter::run

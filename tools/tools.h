// The tools that the multi-call program `platter` is made of.
//
// Each tool is a function in its own folder: it gets the name it was called by ("platter img" or
// "qemu-img", for messages) and the arguments from its own name on (argv[0]), and gives the
// process's exit status. To add a tool: its folder, a line here, a line in CMakeLists.txt.
// Threads: the main thread, one call.
#pragma once

#include <string>
#include <string_view>

namespace platter::img {
int run_img(std::string program, int argc, char** argv);
}  // namespace platter::img

namespace platter::run {
int run_main(std::string program, int argc, char** argv);
}  // namespace platter::run

namespace platter::io_tool {
int run_io(std::string program, int argc, char** argv);
}  // namespace platter::io_tool

namespace platter::tools {

struct Tool {
  std::string_view name;
  std::string_view alias;  // the program whose habits it keeps; empty: none
  std::string_view summary;
  int (*run)(std::string program, int argc, char** argv);
};

inline constexpr Tool kTools[] = {
    {"img", "qemu-img", "create, inspect, convert, check, snapshot, clone and repair images",
     img::run_img},
    {"run", "", "run a small KVM machine on disk images", run::run_main},
    {"io", "qemu-io", "read, write and verify any part of an image", io_tool::run_io},
};

}  // namespace platter::tools

// platter: one program, several tools. `platter img info x` and a link named `qemu-img` that is
// called as `qemu-img info x` do the same.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <string>
#include <string_view>

#include "tools/tools.h"

namespace {

using platter::tools::kTools;
using platter::tools::Tool;

std::string_view base_name(std::string_view path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

const Tool* find(std::string_view name) {
  for (const Tool& tool : kTools) {
    if (tool.name == name || (!tool.alias.empty() && tool.alias == name)) return &tool;
  }
  return nullptr;
}

void print_usage(std::FILE* out) {
  std::fputs("usage: platter TOOL [ARGUMENT...]\n\nTools:\n", out);
  for (const Tool& tool : kTools) {
    std::fprintf(out, "  %-10s %s\n", std::string(tool.name).c_str(),
                 std::string(tool.summary).c_str());
  }
  std::fputs("\n'platter TOOL --help' describes a tool.\n", out);
}

// A standard file that is closed would be the next file that is opened, and messages would go into
// an image or a device. What stands in for it fails on use, as the closed one would: reads of
// standard input, writes to the others.
bool fill_standard_files() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) != -1 || errno != EBADF) continue;
    // The lowest free number is this one, as those below it are open.
    if (::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd) return false;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (!fill_standard_files()) return 1;
  const std::string_view invoked = argc > 0 ? base_name(argv[0]) : "platter";
  // Linked under the name of a tool, or of the program whose habits that tool keeps.
  if (const Tool* tool = find(invoked)) return tool->run(std::string(invoked), argc, argv);

  if (argc < 2) {
    print_usage(stderr);
    return 1;
  }
  const std::string_view name = argv[1];
  if (name == "-h" || name == "--help" || name == "help") {
    print_usage(stdout);
    return 0;
  }
  if (name == "-V" || name == "--version") {
    std::printf("platter %s\n", PLATTER_VERSION);
    return 0;
  }
  const Tool* tool = find(name);
  if (tool == nullptr) {
    std::fprintf(stderr, "platter: no tool named '%s'\n", argv[1]);
    print_usage(stderr);
    return 1;
  }
  return tool->run("platter " + std::string(tool->name), argc - 1, argv + 1);
}

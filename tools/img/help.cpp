// --help and --version.
#include <fmt/format.h>

#include "tools/img/commands.h"
#include "tools/img/common.h"

namespace platter::img {
namespace {

constexpr std::string_view kCommandSyntax = R"(
Command syntax:
  amend [--object objectdef] [--image-opts] [-p] [-q] [-f fmt] [-t cache] [--force] -o options filename
  bench [-c count] [-d depth] [-f fmt] [--flush-interval=flush_interval] [-i aio] [-n] [--no-drain] [-o offset] [--pattern=pattern] [-q] [-s buffer_size] [-S step_size] [-t cache] [-w] [-U] filename
  bitmap (--merge SOURCE | --add | --remove | --clear | --enable | --disable)... [-b source_file [-F source_fmt]] [-g granularity] [--object objectdef] [--image-opts | -f fmt] filename bitmap
  check [--object objectdef] [--image-opts] [-q] [-f fmt] [--output=ofmt] [-r [leaks | all]] [-T src_cache] [-U] filename
  commit [--object objectdef] [--image-opts] [-q] [-f fmt] [-t cache] [-b base] [-r rate_limit] [-d] [-p] filename
  compare [--object objectdef] [--image-opts] [-f fmt] [-F fmt] [-T src_cache] [-p] [-q] [-s] [-U] filename1 filename2
  convert [--object objectdef] [--image-opts] [--target-image-opts] [--target-is-zero] [--bitmaps [--skip-broken-bitmaps]] [-U] [-C] [-c] [-p] [-q] [-n] [-f fmt] [-t cache] [-T src_cache] [-O output_fmt] [-B backing_file [-F backing_fmt]] [-o options] [-l snapshot_param] [-S sparse_size] [-r rate_limit] [-m num_coroutines] [-W] [--salvage] filename [filename2 [...]] output_filename
  create [--object objectdef] [-q] [-f fmt] [-b backing_file [-F backing_fmt]] [-u] [-o options] filename [size]
  dd [--image-opts] [-U] [-f fmt] [-O output_fmt] [bs=block_size] [count=blocks] [skip=blocks] if=input of=output
  info [--object objectdef] [--image-opts] [-f fmt] [--output=ofmt] [--backing-chain] [-U] filename
  map [--object objectdef] [--image-opts] [-f fmt] [--start-offset=offset] [--max-length=len] [--output=ofmt] [-U] filename
  measure [--output=ofmt] [-O output_fmt] [-o options] [--size N | [--object objectdef] [--image-opts] [-f fmt] [-l snapshot_param] filename]
  rebase [--object objectdef] [--image-opts] [-U] [-q] [-f fmt] [-t cache] [-T src_cache] [-p] [-u] -b backing_file [-F backing_fmt] filename
  resize [--object objectdef] [--image-opts] [-f fmt] [--preallocation=prealloc] [-p] [-q] [--shrink] filename [+ | -]size
  snapshot [--object objectdef] [--image-opts] [-U] [-q] [-l | -a snapshot | -c snapshot | -d snapshot | -r snapshot --to name] filename
  stream [--object objectdef] [--image-opts] [-q] [-f fmt] [-t cache] [-b base] [-r rate_limit] [-p] filename

Parameters:
  filename      a disk image; "json:{...}" names a block graph
  fmt           the format of an image; guessed when it is not given
  cache         none, writeback (default, except for convert), writethrough, directsync
                or unsafe (default for convert)
  size          bytes, or with a suffix: k or K (1024), M, G, T, P, E
  options       name=value,...; "-o help" lists those of a format
  objectdef     secret,id=...,data=... or secret,id=...,file=...
  snapshot_param  snapshot.id=ID,snapshot.name=NAME or ID_OR_NAME

  -h            show this help
  -p            show progress
  -q            print nothing but errors
  -U            share the image with a process that writes to it
  -u            create, rebase: do not open the backing file
  -c            convert: compress
  -n            convert: write into an image that exists
  -m            convert: number of requests in flight, 1 to 16 (default 8)
  -W            convert: write out of order
  -C            convert: let the host copy without passing the data through this process
  -S            convert: number of zero bytes that become a hole (default 4k); 0: none do
  -r            check: repair ('leaks' or 'all'); convert, commit, stream: bytes per second
                at most; snapshot: rename, in place of a snapshot that has the new name
  -s            compare: differ also in size and allocation
  -d            commit: do not empty the image afterwards
  -b            commit, stream: the image of the backing chain to go down to
  --output      human or json
)";

}  // namespace

int print_help() {
  std::string out = fmt::format(
      "usage: {} [standard options] command [command options]\n"
      "Disk image utility\n\n"
      "    '-h', '--help'       display this help and exit\n"
      "    '-V', '--version'    output version information and exit\n"
      "    '-T', '--trace'      accepted and ignored\n",
      program());
  out += kCommandSyntax;
  out += "\nSupported formats:";
  for (const DriverType* driver : all_drivers()) {
    out += ' ';
    out += driver->name;
  }
  out += "\n";
  print(out);
  return finish_output(0);
}

int print_version() {
  // Scripts ask the program they know for the version whose habits they may rely on.
  if (program() == "qemu-img") {
    print("qemu-img version 7.2.0 (Platter " PLATTER_VERSION ")\n");
  } else {
    print(program() + " version " PLATTER_VERSION " (habits of qemu-img 7.2)\n");
  }
  return finish_output(0);
}

}  // namespace platter::img

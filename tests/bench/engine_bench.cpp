// Costs of the request engine, in CPU time for each request: 4 KiB reads through chains, in-place
// writes, allocating writes. The same over raw for comparison.
//
//   bench_engine [DIRECTORY]       (default /dev/shm)
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "block/exec/buffer.h"
#include "block/node/graph.h"

namespace platter {
namespace {

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

enum class Kind : std::uint8_t { kRead, kWrite };

struct Load {
  Kind kind = Kind::kRead;
  std::uint64_t size = 4096;    // bytes of a request
  std::uint64_t span = 0;       // bytes of the disk that are touched
  std::uint64_t stride = 4096;  // offsets are multiples
  bool sequential = false;
  unsigned requests = 0;
  unsigned depth = 1;
};

struct Shared {
  BlockNode* node;
  const Load* load;
  unsigned next = 0;
  std::mt19937_64 random{1};
};

Task<void> worker(Shared* shared) {
  const Load& load = *shared->load;
  const Buffer buffer(load.size);
  std::memset(buffer.data(), 0x5a, buffer.size());
  while (shared->next < load.requests) {
    const std::uint64_t slots = load.span / load.stride;
    const std::uint64_t slot = load.sequential ? shared->next % slots : shared->random() % slots;
    ++shared->next;
    auto request = load.kind == Kind::kRead ? shared->node->read(slot * load.stride, buffer.iov())
                                            : shared->node->write(slot * load.stride, buffer.iov());
    auto done = co_await request;
    if (!done) {
      std::fprintf(stderr, "%s\n", done.error().message().c_str());
      std::abort();
    }
  }
}

Task<void> play(BlockNode* node, const Load* load) {
  Shared shared{node, load};
  std::vector<Task<void>> workers;
  for (unsigned i = 0; i < load->depth; ++i) workers.push_back(worker(&shared));
  for (auto& one : workers) co_await one;
}

Task<Result<Edge>> open(std::string filename, std::string format, bool writable) {
  OpenRequest request;
  request.filename = std::move(filename);
  request.format = std::move(format);
  request.flags.read_only = !writable;
  request.permissions = writable ? Permissions::writer() : Permissions::reader();
  return open_node(std::move(request));
}

void measure(const char* name, const std::string& filename, const std::string& format,
             const Load& load, bool warm = true) {
  auto executor = Executor::create();
  const bool writable = load.kind == Kind::kWrite;
  auto opened = (*executor)->block_on([&] { return open(filename, format, writable); });
  if (!opened) {
    std::fprintf(stderr, "%s: %s\n", name, opened.error().message().c_str());
    std::exit(1);
  }
  if (warm) {
    Load first = load;
    first.requests = static_cast<unsigned>(load.span / load.stride / 16);
    (*executor)->block_on([&] { return play(opened->get(), &first); });
  }
  const double before = cpu_seconds();
  (*executor)->block_on([&] { return play(opened->get(), &load); });
  const double spent = cpu_seconds() - before;
  std::printf("%-44s %8.2f us\n", name, spent * 1e6 / load.requests);
  std::fflush(stdout);
  auto closed = (*executor)->block_on([&] { return opened->detach(); });
  if (!closed) std::exit(1);
}

void create(const std::string& filename, const std::string& format, std::uint64_t size,
            const std::string& options) {
  auto executor = Executor::create();
  auto made = (*executor)->block_on(
      [&] { return create_image(format, filename, size, Options::parse_keyval(options).value()); });
  if (!made) {
    std::fprintf(stderr, "%s\n", made.error().message().c_str());
    std::exit(1);
  }
}

}  // namespace
}  // namespace platter

int main(int argc, char** argv) {
  using namespace platter;
  const std::string dir =
      std::string(argc > 1 ? argv[1] : "/dev/shm") + "/engine-bench-" + std::to_string(getpid());
  const std::uint64_t kSpan = std::uint64_t{256} << 20;
  const std::string raw = dir + ".raw";
  const std::string base = dir + ".0.qcow2";
  create(raw, "raw", kSpan, "");
  create(base, "qcow2", kSpan, "");
  const Load fill{.kind = Kind::kWrite,
                  .size = 1 << 20,
                  .span = kSpan,
                  .stride = 1 << 20,
                  .sequential = true,
                  .requests = 256,
                  .depth = 1};
  measure("fill raw, 1 MiB", raw, "raw", fill, false);
  measure("fill qcow2, 1 MiB (allocating)", base, "qcow2", fill, false);
  for (const unsigned depth : {1u, 32u}) {
    std::printf("depth %u\n", depth);
    const Load read{.span = kSpan, .requests = 100000, .depth = depth};
    const Load write{.kind = Kind::kWrite, .span = kSpan, .requests = 100000, .depth = depth};
    measure("  4 KiB random read, raw", raw, "raw", read);
    measure("  4 KiB random read, qcow2", base, "qcow2", read);
    measure("  4 KiB random write, raw", raw, "raw", write);
    measure("  4 KiB random write in place, qcow2", base, "qcow2", write);
    const std::string fresh = dir + ".fresh.qcow2";
    create(fresh, "qcow2", std::uint64_t{8} << 30, "");
    const Load allocate{.kind = Kind::kWrite,
                        .span = std::uint64_t{8} << 30,
                        .stride = 65536,
                        .sequential = true,
                        .requests = 20000,
                        .depth = depth};
    measure("  4 KiB write to unallocated clusters", fresh, "qcow2", allocate, false);
    unlink(fresh.c_str());
    create(fresh, "qcow2", std::uint64_t{4} << 30, "");
    const Load stream{.kind = Kind::kWrite,
                      .size = 65536,
                      .span = std::uint64_t{1} << 30,
                      .stride = 65536,
                      .sequential = true,
                      .requests = 16384,
                      .depth = depth};
    measure("  64 KiB sequential allocating write", fresh, "qcow2", stream, false);
    unlink(fresh.c_str());
  }
  std::string top = base;
  unsigned made = 0;
  for (const unsigned layers : {1u, 10u, 50u}) {
    while (made < layers) {
      const std::string next = dir + "." + std::to_string(++made) + ".qcow2";
      create(next, "qcow2", kSpan, "backing_file=" + top + ",backing_fmt=qcow2");
      top = next;
    }
    const Load read{.span = kSpan, .requests = 100000};
    const std::string name = "4 KiB random read, chain of " + std::to_string(layers);
    measure(name.c_str(), top, "qcow2", read);
  }
  unlink(raw.c_str());
  for (unsigned i = 0; i <= made; ++i) unlink((dir + "." + std::to_string(i) + ".qcow2").c_str());
  return 0;
}

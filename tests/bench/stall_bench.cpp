// How long a guest's writes wait while an internal snapshot is taken: a stream of 4 KiB writes, one
// at a time, on an executor of its own, as a queue of a disk has it.
//
//   bench_stall IMAGE      (a qcow2 image, which has a snapshot "s" afterwards)
//
// Prints, in seconds, the longest write of those that were under way between the beginning and the
// end of the snapshot, and what 99.9 % of them did not exceed. stall_peer.py does the same to QEMU.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "block/exec/buffer.h"
#include "block/exec/executor_thread.h"
#include "block/node/graph.h"

namespace platter {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::uint64_t kRequest = 4096;
constexpr std::uint64_t kSpan = std::uint64_t{16} << 30;   // of the disk, from its start
constexpr auto kBesides = std::chrono::milliseconds(300);  // of writes before and after

struct Write {
  Clock::time_point begin;
  Clock::time_point end;
};

[[noreturn]] void give_up(const Error& error) {
  std::fprintf(stderr, "bench_stall: %s\n", error.message().c_str());
  std::exit(1);
}

Task<Result<Edge>> open(std::string filename) {
  OpenRequest request;
  request.filename = std::move(filename);
  request.format = "qcow2";
  request.flags.read_only = false;
  request.permissions = Permissions::writer();
  return open_node(std::move(request));
}

Task<Result<void>> write_until(BlockNode* node, const std::atomic<bool>* ended,
                               std::vector<Write>* writes) {
  const Buffer buffer(kRequest);
  std::memset(buffer.data(), 0x5a, buffer.size());
  std::mt19937_64 random(1);
  const std::uint64_t slots = std::min(kSpan, node->size()) / kRequest;
  while (!ended->load()) {
    const std::uint64_t offset = random() % slots * kRequest;
    Write one;
    one.begin = Clock::now();
    auto written = co_await node->write(offset, buffer.iov());
    PLATTER_CO_TRY(written);
    one.end = Clock::now();
    writes->push_back(one);
  }
  co_return {};
}

std::vector<double> seconds_between(const std::vector<Write>& writes, Clock::time_point from,
                                    Clock::time_point to) {
  std::vector<double> seconds;
  for (const Write& one : writes) {
    if (one.end >= from && one.begin <= to)
      seconds.push_back(std::chrono::duration<double>(one.end - one.begin).count());
  }
  std::ranges::sort(seconds);
  return seconds;
}

int measure(const char* filename) {
  auto control = ExecutorThread::start();
  if (!control) give_up(control.error());
  auto queue = ExecutorThread::start();
  if (!queue) give_up(queue.error());
  Executor& executor = (*control)->executor();
  const auto opening = [&] { return open(filename); };
  auto opened = run_blocking(executor, opening);
  if (!opened) give_up(opened.error());
  std::atomic<bool> ended{false};
  std::vector<Write> writes;
  std::thread guest([&] {
    const auto writing = [&] { return write_until(opened->get(), &ended, &writes); };
    auto written = run_blocking((*queue)->executor(), writing);
    if (!written) give_up(written.error());
  });
  std::this_thread::sleep_for(kBesides);
  const auto from = Clock::now();
  const auto taking = [&] { return (*opened)->driver().snapshots()->create("s", 1, 0); };
  auto taken = run_blocking(executor, taking);
  const auto to = Clock::now();
  if (!taken) give_up(taken.error());
  std::this_thread::sleep_for(kBesides);
  ended.store(true);
  guest.join();
  const auto closing = [&] { return opened->detach(); };
  auto closed = run_blocking(executor, closing);
  if (!closed) give_up(closed.error());
  const std::vector<double> seconds = seconds_between(writes, from, to);
  if (seconds.empty()) {
    std::fprintf(stderr, "bench_stall: no write was under way\n");
    return 1;
  }
  std::printf("%.6f %.6f\n", seconds.back(), seconds[(seconds.size() * 999 + 999) / 1000 - 1]);
  std::fprintf(stderr, "%zu writes in %.3f s\n", seconds.size(),
               std::chrono::duration<double>(to - from).count());
  return 0;
}

}  // namespace
}  // namespace platter

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: bench_stall IMAGE\n");
    return 2;
  }
  return platter::measure(argv[1]);
}

// What a start that fails leaves alone, and signals that were ignored before.
#include <gtest/gtest.h>

#include <csignal>
#include <fstream>
#include <iterator>

#include "tools/run/console.h"
#include "tools/run/end_signals.h"
#include "unit/scratch_dir.h"

namespace platter::run {
namespace {

std::string content_of(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(Console, AFileIsEmptiedWhenTheMachineStarts) {
  const ScratchDir dir;
  const std::string path = dir / "log";
  std::ofstream(path) << "of an earlier run";
  const auto console = Console::open("file:" + path);
  ASSERT_TRUE(console);
  EXPECT_EQ(content_of(path), "of an earlier run");
  (*console)->begin();
  (*console)->write(std::byte{'x'});
  EXPECT_EQ(content_of(path), "x");
}

TEST(EndSignals, WhatIsIgnoredStaysSo) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    // (This program may have been started with it ignored.)
    const auto before = ::signal(signal, SIG_DFL);
    sigset_t set = end_signals();
    EXPECT_EQ(sigismember(&set, signal), 1);
    ::signal(signal, SIG_IGN);
    set = end_signals();
    ::signal(signal, before);
    EXPECT_EQ(sigismember(&set, signal), 0);
  }
}

}  // namespace
}  // namespace platter::run

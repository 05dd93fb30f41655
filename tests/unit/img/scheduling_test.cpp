// `platter img` runs as batch work, unless its user has chosen how it is scheduled.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/tools.h"

namespace platter::img {
namespace {

// The policy after `img --version`, begun with `policy`.
int policy_after(int policy) {
  const pid_t child = fork();
  if (child == 0) {
    const sched_param param{};
    if (sched_setscheduler(0, policy, &param) != 0) _exit(99);
    char name[] = "img";
    char option[] = "--version";
    char* argv[] = {name, option, nullptr};
    if (run_img("img", 2, argv) != 0) _exit(98);
    _exit(sched_getscheduler(0));
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) return -1;
  return WEXITSTATUS(status);
}

using ImgSchedulingTest = ::testing::Test;

TEST_F(ImgSchedulingTest, RunsAsBatchWork) { EXPECT_EQ(policy_after(SCHED_OTHER), SCHED_BATCH); }

TEST_F(ImgSchedulingTest, KeepsAChosenPolicy) { EXPECT_EQ(policy_after(SCHED_IDLE), SCHED_IDLE); }

}  // namespace
}  // namespace platter::img

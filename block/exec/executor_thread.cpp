#include "block/exec/executor_thread.h"

#include <system_error>

namespace platter {

Result<std::unique_ptr<ExecutorThread>> ExecutorThread::start(Executor::Config config) {
  Result<std::unique_ptr<Executor>> executor = Executor::create(config);
  PLATTER_TRY(executor);
  std::unique_ptr<ExecutorThread> self(new ExecutorThread());
  self->executor_ = std::move(*executor);
  Executor* const runs = self->executor_.get();
  try {
    self->thread_ = std::thread([runs] {
      runs->run();
      runs->drain();
    });
  } catch (const std::system_error& error) {
    return fail_errno(error.code().value(), "could not start a thread");
  }
  return self;
}

ExecutorThread::~ExecutorThread() {
  if (!thread_.joinable()) return;
  executor_->stop();
  thread_.join();
}

}  // namespace platter

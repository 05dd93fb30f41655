#include "block/node/transaction.h"

#include <ranges>
#include <span>

#include "block/node/graph.h"

namespace platter {
namespace {

class RightsStep : public TransactionStep {
 public:
  RightsStep(Edge& edge, Permissions wanted)
      : edge_(edge), wanted_(wanted), before_(edge.permissions()) {}

  Task<Result<void>> prepare() override {
    before_ = edge_.permissions();
    auto changed = co_await edge_.set_permissions(wanted_);
    co_return changed;
  }
  Task<void> abort() override {
    // Nobody can have taken what this user held until a moment ago.
    auto restored = co_await edge_.set_permissions(before_);
    static_cast<void>(restored);
  }

 private:
  Edge& edge_;
  const Permissions wanted_;
  Permissions before_;
};

}  // namespace

void Transaction::set_permissions(Edge& edge, Permissions permissions) {
  steps_.push_back(std::make_unique<RightsStep>(edge, permissions));
}

Task<Result<void>> Transaction::commit(Last last) {
  Result<void> result;
  std::size_t prepared = 0;
  while (result && prepared != steps_.size()) {
    auto preparing = steps_[prepared++]->prepare();
    result = co_await preparing;
  }
  if (result && last) {
    auto doing = last();
    result = co_await doing;
  }
  const std::span<std::unique_ptr<TransactionStep>> begun(steps_.data(), prepared);
  for (const auto& step : begun | std::views::reverse) {
    if (result) {
      step->commit();
    } else {
      auto aborted = step->abort();
      co_await aborted;
    }
  }
  for (const auto& step : begun | std::views::reverse) step->undrain();
  if (!result) co_return result;
  for (const auto& step : begun) {
    auto finishing = step->finish();
    auto finished = co_await finishing;
    if (result && !finished) result = finished;
  }
  co_return result;
}

Task<Result<void>> reopen(BlockNode& node, OpenFlags flags) {
  Transaction transaction;
  transaction.reopen(node, flags);
  auto done = co_await transaction.commit();
  co_return done;
}

}  // namespace platter

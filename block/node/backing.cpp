// The edge between an image and its backing image.
#include "block/node/graph.h"
#include "block/node/transaction.h"

namespace platter {
namespace {

class BackingStep : public TransactionStep {
 public:
  BackingStep(BlockNode& node, NodePtr backing) : node_(node), backing_(std::move(backing)) {}

  Task<Result<void>> prepare() override {
    edge_ = backing_edge(node_);
    if (edge_ == nullptr)
      co_return fail(EINVAL, "node '{}' has no backing node", node_.node_name());
    if (backing_) {
      auto attached = co_await Edge::attach(backing_, edge_->user(), edge_->permissions());
      PLATTER_CO_TRY(attached);
      other_ = std::move(*attached);
    }
    auto drained = node_.drain();
    co_await drained;
    drained_ = true;
    co_return {};
  }
  void commit() override { std::swap(*edge_, other_); }
  Task<void> abort() override {
    auto detached = co_await other_.detach();
    static_cast<void>(detached);
  }
  void undrain() override {
    if (drained_) node_.undrain();
  }
  // Closes what nobody else uses, down to where the new backing node holds on.
  Task<Result<void>> finish() override { return other_.detach(); }

 private:
  BlockNode& node_;
  NodePtr backing_;
  Edge* edge_ = nullptr;
  Edge other_;  // the new one until commit(), then the old one
  bool drained_ = false;
};

}  // namespace

Edge* backing_edge(BlockNode& node) {
  for (Edge* child : node.driver().children()) {
    if (child != nullptr && *child && child->get() == node.backing()) return child;
  }
  return nullptr;
}

void Transaction::replace_backing(BlockNode& node, NodePtr backing) {
  steps_.push_back(std::make_unique<BackingStep>(node, std::move(backing)));
}

}  // namespace platter

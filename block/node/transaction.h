// Transaction: changes of the graph of nodes that happen together or not at all.
//
// Steps are collected first. commit() prepares them in their order, each with its nodes drained,
// and then either lets all of them take effect or takes all of them back, in the opposite order.
// Requests of the nodes concerned wait until the end.
//
// Threads: one control executor at a time. The nodes and edges outlive the transaction.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "block/base/error.h"
#include "block/exec/task.h"
#include "block/node/node.h"

namespace platter {

// One change. Its parts are called in the order written here: prepare(), then commit() and
// finish(), or abort().
class TransactionStep {
 public:
  virtual ~TransactionStep() = default;
  // Drains its nodes and does all that can fail. A failure here is followed by abort(), too.
  virtual Task<Result<void>> prepare() = 0;
  virtual void commit() {}
  virtual Task<void> abort() = 0;
  // Lets requests go on.
  virtual void undrain() {}
  // Gives up what is not used any more. A failure is reported, but changes nothing.
  virtual Task<Result<void>> finish() { co_return {}; }
};

class Transaction {
 public:
  // Changes flags (read-only, cache mode) of a node and its storage children. A node cannot become
  // read-only under a user who needs to write: lower that edge's rights in an earlier step.
  void reopen(BlockNode& node, OpenFlags flags);
  // Changes what the user of an edge needs, and allows to others.
  void set_permissions(Edge& edge, Permissions permissions);
  // Puts `node` on another backing node (nullptr: on none), which must show the same where it shows
  // through; what is written in the image is not changed. EINVAL when it has no backing node. Who
  // looks at node.backing() beside requests, as filters do, must not be running.
  void replace_backing(BlockNode& node, NodePtr backing);

  // `last`: what cannot be taken back, such as a write to an image's header. It is done when all
  // steps are prepared, and only when it succeeds do they take effect.
  using Last = std::function<Task<Result<void>>()>;
  // At most once.
  Task<Result<void>> commit(Last last = {});

 private:
  std::vector<std::unique_ptr<TransactionStep>> steps_;
};

}  // namespace platter

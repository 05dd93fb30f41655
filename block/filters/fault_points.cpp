#include <bit>

#include "block/base/checked.h"
#include "block/filters/fault.h"

namespace platter {
namespace {

constexpr std::uint64_t kUnbounded = ~std::uint64_t{0};

// Operations without a range (flush, resize) match only a rule without one, as in QEMU.
bool overlaps(std::uint64_t offset, std::uint64_t length, std::uint64_t rule_offset,
              std::uint64_t rule_length) {
  if (length == 0) return rule_offset == 0 && rule_length == kUnbounded;
  if (offset >= rule_offset) return offset - rule_offset < rule_length;
  return rule_offset - offset < length;
}

}  // namespace

void FaultPoints::add(FaultRule rule) {
  const MutexLock lock(mutex_);
  rules_.push_back({.rule = rule, .matches = 0, .armed = rule.event == FaultEvent::kNone});
}

void FaultPoints::add_transition(FaultEvent event, unsigned state, unsigned new_state) {
  const MutexLock lock(mutex_);
  transitions_.push_back({event, state, new_state});
}

void FaultPoints::clear_rules() {
  const MutexLock lock(mutex_);
  rules_.clear();
  transitions_.clear();
}

std::uint64_t FaultPoints::acted() const {
  const MutexLock lock(mutex_);
  return acted_;
}

std::uint64_t FaultPoints::announced(FaultEvent event) const {
  const MutexLock lock(mutex_);
  return announced_[static_cast<std::size_t>(event)];
}

std::uint64_t FaultPoints::requests(std::uint32_t operations) const {
  const MutexLock lock(mutex_);
  std::uint64_t sum = 0;
  for (std::size_t bit = 0; bit < requests_.size(); ++bit) {
    if ((operations >> bit & 1) != 0) sum += requests_[bit];
  }
  return sum;
}

void FaultPoints::suspend(std::string tag, FaultEvent event) {
  const MutexLock lock(mutex_);
  breaks_.push_back({std::move(tag), event, 0, 0, 0});
}

void FaultPoints::suspend_operation(std::string tag, std::uint32_t operations, std::uint64_t offset,
                                    std::uint64_t length) {
  const MutexLock lock(mutex_);
  breaks_.push_back({std::move(tag), FaultEvent::kNone, operations, offset, length});
}

bool FaultPoints::is_suspended(std::string_view tag) const {
  const MutexLock lock(mutex_);
  return std::ranges::any_of(halted_, [&](const auto& halted) { return halted->tag == tag; });
}

Task<void> FaultPoints::wait_suspended(std::string tag) {
  UniqueMutexLock lock(mutex_);
  while (std::ranges::none_of(halted_, [&](const auto& halted) { return halted->tag == tag; })) {
    auto wait = changed_.wait(lock);
    co_await wait;
    lock.lock();
  }
}

Result<void> FaultPoints::resume(std::string_view tag) {
  const MutexLock lock(mutex_);
  bool found = false;
  std::erase_if(halted_, [&](const std::shared_ptr<Halted>& halted) {
    if (halted->tag != tag) return false;
    halted->released = true;
    found = true;
    return true;
  });
  if (!found) return fail(ENOENT, "Could not resume request: no request is suspended as '{}'", tag);
  changed_.notify_all();
  return {};
}

Result<void> FaultPoints::remove_break(std::string_view tag) {
  std::size_t removed;
  {
    const MutexLock lock(mutex_);
    removed = std::erase_if(breaks_, [&](const Break& b) { return b.tag == tag; });
  }
  const Result<void> resumed = resume(tag);
  if (removed == 0 && !resumed)
    return fail(ENOENT, "Could not remove breakpoint: there is no '{}'", tag);
  return {};
}

std::shared_ptr<FaultPoints::Halted> FaultPoints::halt(std::string tag) {
  auto halted = std::make_shared<Halted>();
  halted->tag = std::move(tag);
  halted_.push_back(halted);
  changed_.notify_all();
  return halted;
}

Task<void> FaultPoints::wait_released(std::shared_ptr<Halted> halted) {
  UniqueMutexLock lock(mutex_);
  while (!halted->released) {
    auto wait = changed_.wait(lock);
    co_await wait;
    lock.lock();
  }
}

Task<void> FaultPoints::announce(FaultEvent event) {
  UniqueMutexLock lock(mutex_);
  ++announced_[static_cast<std::size_t>(event)];
  const auto matches = [&](FaultEvent e, unsigned state) PLATTER_REQUIRES(mutex_) {
    return e == event && (state == 0 || state == state_);
  };
  bool first = true;
  for (Armed& rule : rules_) {
    if (event == FaultEvent::kNone || !matches(rule.rule.event, rule.rule.state)) continue;
    if (first) {
      // The event's rules take the place of those that an earlier event has armed.
      for (Armed& other : rules_) other.armed = other.rule.event == FaultEvent::kNone;
      first = false;
    }
    rule.armed = true;
  }
  unsigned new_state = state_;
  for (const Transition& transition : transitions_) {
    if (matches(transition.event, transition.state)) new_state = transition.new_state;
  }
  state_ = new_state;
  const auto reached = std::ranges::find_if(
      breaks_, [&](const Break& b) { return b.operations == 0 && b.event == event; });
  if (reached == breaks_.end()) co_return;
  std::string tag = std::move(reached->tag);
  breaks_.erase(reached);
  const std::shared_ptr<Halted> halted = halt(std::move(tag));
  lock.unlock();
  auto released = wait_released(halted);
  co_await released;
}

Task<void> FaultPoints::pass_breakpoints(std::uint32_t operation, std::uint64_t offset,
                                         std::uint64_t length) {
  UniqueMutexLock lock(mutex_);
  ++requests_[static_cast<std::size_t>(std::countr_zero(operation))];
  const auto reached = std::ranges::find_if(breaks_, [&](const Break& b) {
    return (b.operations & operation) != 0 && overlaps(offset, length, b.offset, b.length);
  });
  if (reached == breaks_.end()) co_return;
  std::string tag = std::move(reached->tag);
  breaks_.erase(reached);
  const std::shared_ptr<Halted> halted = halt(std::move(tag));
  lock.unlock();
  auto released = wait_released(halted);
  co_await released;
}

std::optional<FaultRule> FaultPoints::match(std::uint32_t operation, std::uint64_t offset,
                                            std::uint64_t length) {
  const MutexLock lock(mutex_);
  for (auto armed = rules_.begin(); armed != rules_.end(); ++armed) {
    const FaultRule& rule = armed->rule;
    if (!armed->armed || (rule.operations & operation) == 0) continue;
    // An armed rule has passed its state when its event came.
    if (rule.event == FaultEvent::kNone && rule.state != 0 && rule.state != state_) continue;
    if (!overlaps(offset, length, rule.offset, rule.length)) continue;
    if (armed->matches++ < rule.skip) continue;
    const FaultRule acting = rule;
    ++acted_;
    if (acting.count != 0 && armed->matches - acting.skip >= acting.count) rules_.erase(armed);
    return acting;
  }
  return std::nullopt;
}

}  // namespace platter

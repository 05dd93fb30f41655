// What g++ 12 makes of temporaries in a co_await expression. The forms with a name must work; what
// comes of those without is told, not asserted: a compiler without the mistake may build this too.
// tests/layering/check_coroutines.py keeps them out of everything else.
#include <gtest/gtest.h>

#include <cstdio>
#include <functional>
#include <string>
#include <utility>

#include "block/exec/executor.h"
#include "block/exec/task.h"

namespace platter {
namespace {

struct YieldOnce {
  bool await_ready() noexcept { return false; }
  void await_suspend(std::coroutine_handle<> h) noexcept { Executor::current().post(h); }
  void await_resume() noexcept {}
};

// Counts those of its kind that live: zero in the end, or less when one was destroyed twice.
class Counted {
 public:
  explicit Counted(int& alive) : alive_(&alive) { ++*alive_; }
  Counted(const Counted& other) : alive_(other.alive_) { ++*alive_; }
  Counted& operator=(const Counted&) = delete;
  ~Counted() { --*alive_; }
  int alive() const { return *alive_; }

 private:
  int* alive_;
};

struct Aggregate {
  Counted counted;
  int more = 0;
};

struct AggregateAwaiter {
  Counted counted;
  bool await_ready() noexcept { return false; }
  void await_suspend(std::coroutine_handle<> h) noexcept { Executor::current().post(h); }
  void await_resume() noexcept {}
};

Task<int> by_value(Aggregate one) {
  co_await YieldOnce{};
  co_return one.counted.alive();
}

Task<int> by_reference(const Aggregate& one) {
  co_await YieldOnce{};
  co_return one.counted.alive();
}

template <class Callback>
Task<int> calls(Callback callback) {
  co_await YieldOnce{};
  co_return callback();
}

Task<int> calls_any(std::function<int()> callback) {
  co_await YieldOnce{};
  co_return callback();
}

// What is left alive after a coroutine function has had a counter, and how many it saw meanwhile.
struct Outcome {
  int left = 0;
  int seen = 0;
};
using Form = Task<int> (*)(int& alive);

Outcome outcome_of(Form form) {
  auto executor = Executor::create();
  Outcome outcome;
  outcome.seen = (*executor)->block_on([&] { return form(outcome.left); });
  return outcome;
}

// The safe forms.

Task<int> named_aggregate_by_value(int& alive) {
  Aggregate one{Counted(alive), 1};
  const int seen = co_await by_value(std::move(one));
  co_return seen;
}

Task<int> named_aggregate_by_reference(int& alive) {
  const Aggregate one{Counted(alive), 1};
  const int seen = co_await by_reference(one);
  co_return seen;
}

Task<int> named_lambda(int& alive) {
  const Counted counted(alive);
  auto callback = [counted] { return counted.alive(); };
  const int seen = co_await calls(callback);
  co_return seen;
}

Task<int> named_awaiter(int& alive) {
  AggregateAwaiter awaiter{Counted(alive)};
  co_await awaiter;
  co_return awaiter.counted.alive();
}

// A class with a constructor, and what a function returns.
Task<int> object_by_constructor(int& alive) {
  const int seen = co_await calls([](const Counted& one) {
    auto callback = [one] { return one.alive(); };
    return callback;
  }(Counted(alive)));
  co_return seen;
}

TEST(Tripwire, WhatHasANameIsDestroyedOnce) {
  for (Form form : {named_aggregate_by_value, named_aggregate_by_reference, named_lambda,
                    named_awaiter, object_by_constructor}) {
    const Outcome outcome = outcome_of(form);
    EXPECT_EQ(outcome.left, 0);
    EXPECT_GE(outcome.seen, 1);
  }
}

// The dangerous ones.

Task<int> braced_by_value(int& alive) {
  const int seen = co_await by_value(Aggregate{Counted(alive), 1});
  co_return seen;
}

Task<int> braced_by_reference(int& alive) {
  const int seen = co_await by_reference({Counted(alive), 1});
  co_return seen;
}

Task<int> capturing_lambda(int& alive) {
  const Counted counted(alive);
  const int seen = co_await calls([counted] { return counted.alive(); });
  co_return seen;
}

Task<int> capturing_lambda_as_function(int& alive) {
  const Counted counted(alive);
  const int seen = co_await calls_any([counted] { return counted.alive(); });
  co_return seen;
}

Task<int> braced_awaiter(int& alive) {
  co_await AggregateAwaiter{Counted(alive)};
  co_return 1;
}

Task<Counted> counted(int& alive) {
  co_await YieldOnce{};
  co_return Counted(alive);
}

Task<int> awaited_in_an_arm(int& alive) {
  const int seen = (alive == 0 ? co_await counted(alive) : co_await counted(alive)).alive();
  co_return seen;
}

TEST(Tripwire, TellsWhatBecomesOfTemporaries) {
  const std::pair<const char*, Form> forms[] = {
      {"braced_by_value", braced_by_value},
      {"braced_by_reference", braced_by_reference},
      {"capturing_lambda", capturing_lambda},
      {"capturing_lambda_as_function", capturing_lambda_as_function},
      {"braced_awaiter", braced_awaiter},
      {"awaited_in_an_arm", awaited_in_an_arm},
  };
  int wrong = 0;
  for (const auto& [name, form] : forms) {
    const Outcome outcome = outcome_of(form);
    // Alive while it was needed, at least.
    EXPECT_GE(outcome.seen, 1) << name;
    const std::string what = outcome.left == 0 ? "destroyed once" : "destroyed twice";
    RecordProperty(name, what);
    std::printf("%s: %s\n", name, what.c_str());
    if (outcome.left != 0) ++wrong;
  }
  std::printf("%s\n", wrong == 0 ? "this compiler needs no rule about temporaries in co_await"
                                 : "this compiler needs the rule: name what co_await is given");
}

}  // namespace
}  // namespace platter

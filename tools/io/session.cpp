#include "tools/io/session.h"

#include <algorithm>

#include "block/filters/fault.h"
#include "tools/img/common.h"

namespace platter::io_tool {

void Session::complain(std::string_view text) const { img::report_text(text); }

void Session::complain(const Error& error) const { img::report_error(error); }

Task<bool> Session::close() {
  if (!image_) co_return true;
  if (FaultPoints* points = fault_points()) {
    // What halts would halt for ever: nobody is left to resume it.
    for (const std::string& tag : breakpoints_) static_cast<void>(points->remove_break(tag));
    for (const std::string& tag : halted_) static_cast<void>(points->resume(tag));
  }
  breakpoints_.clear();
  halted_.clear();
  auto finished = requests_.join();
  co_await finished;
  print_reports();
  auto detached = co_await image_.detach();
  image_ = Edge();
  // That an image was given up has been said.
  if (detached || detached.error().kind() == ErrorKind::kGivenUp) co_return true;
  complain(detached.error());
  co_return false;
}

Task<bool> Session::need_permissions(std::uint32_t rights) {
  Permissions wanted = image_.permissions();
  if ((rights & ~wanted.need) == 0) co_return true;
  if (image_->read_only()) {
    complain("Block node is read-only");
    co_return false;
  }
  wanted.need |= rights;
  auto granted = co_await image_.set_permissions(wanted);
  if (!granted) complain(granted.error());
  co_return granted.has_value();
}

Result<void> Session::check_range(std::uint64_t offset, std::uint64_t length) const {
  const std::uint64_t size = image_->size();
  if (offset > size || size - offset < length) return fail_errno(EIO);
  return {};
}

void Session::print_reports() {
  if (!reports_.empty()) {
    const std::vector<std::function<void()>> reports = std::exchange(reports_, {});
    for (const std::function<void()>& report : reports) report();
  }
  note_halted();
}

void Session::note_halted() {
  if (breakpoints_.empty()) return;
  const FaultPoints* points = fault_points();
  if (points == nullptr) return;
  std::erase_if(breakpoints_, [&](std::string& tag) {
    if (!points->is_suspended(tag)) return false;
    print("blkdebug: Suspended request '{}'\n", tag);
    halted_.push_back(std::move(tag));
    return true;
  });
}

FaultPoints* Session::fault_points() const { return image_ ? fault_points_of(*image_) : nullptr; }

Result<void> Session::add_object(std::string id) {
  if (std::ranges::find(objects_, id) != objects_.end()) {
    return fail(EEXIST, "attempt to add duplicate property '{}' to object (type 'container')", id);
  }
  objects_.push_back(std::move(id));
  return {};
}

bool Session::take_breakpoint(std::string_view tag) {
  return std::erase_if(breakpoints_, [&](const std::string& known) { return known == tag; }) != 0;
}

}  // namespace platter::io_tool

#include "tools/img/new_image.h"

#include <cerrno>

#include "tools/img/cancel.h"

namespace platter::img {

bool stands_on(BlockNode& node, const std::string& name) {
  if (!node.filename().empty() && same_file(node.filename(), name)) return true;
  // An image that is open for its metadata only has no child of it.
  for (const InfoField& field : node.driver().info().specific) {
    const auto* const data = std::get_if<std::string>(&field.value);
    if (field.name == "data-file" && data != nullptr && same_file(*data, name)) return true;
  }
  for (const Edge* child : node.driver().children()) {
    if (*child && stands_on(**child, name)) return true;
  }
  return false;
}

Result<void> check_data_file_is_not_of(BlockNode& node, const Options& options) {
  const std::string* const data = options.peek("data_file");
  if (data == nullptr || !stands_on(node, *data)) return {};
  return fail(EINVAL, "The external data file '{}' would overwrite a file of '{}'", *data,
              node.filename());
}

Result<void> check_is_not_below(BlockNode& backing, const std::string& name,
                                const Options& options) {
  if (stands_on(backing, name)) {
    return fail(EINVAL, "The image would overwrite a file of its backing chain, from '{}' on",
                backing.filename());
  }
  return check_data_file_is_not_of(backing, options);
}

Task<Result<void>> NewImage::create(std::string format, std::uint64_t size, Options options) {
  if (const std::string* backing = options.peek("backing_file")) backing_ = *backing;
  if (const std::string* data = options.peek("data_file")) {
    if (same_file(*data, file_.name())) {
      co_return fail(EINVAL, "'{}' cannot be the image and its external data file at once", *data);
    }
    data_file_.emplace(*data);
    const Result<void> started = data_file_->start();
    PLATTER_CO_TRY(started);
  }
  const Result<void> started = file_.start();
  PLATTER_CO_TRY(started);
  std::string data_filename;
  if (data_file_) data_filename = data_file_->path();
  auto created = co_await create_image(std::move(format), file_.path(), size, std::move(options),
                                       std::move(data_filename));
  co_return created;
}

void NewImage::locate(OpenSpec& spec) const {
  spec.filename = file_.path();
  if (data_file_ && data_file_->aside()) {
    spec.more.set("data-file.filename", data_file_->path());
  }
  if (!file_.aside() || backing_.empty()) return;
  // Relative names are meant from where the image will be.
  const Result<std::string> full = resolve_backing(file_.name(), backing_);
  const Result<std::string> elsewhere = resolve_backing("/", backing_);
  if (full && elsewhere && *elsewhere != backing_) spec.more.set("backing.filename", *full);
}

Result<void> NewImage::publish() {
  if (data_file_) {
    Result<void> published = data_file_->publish();
    PLATTER_TRY(published);
  }
  return file_.publish();
}

Result<void> NewImage::finish(Result<void> outcome, std::string_view verb) {
  if (outcome) outcome = publish();
  if (outcome) return outcome;
  Error error = outcome.error();
  const bool kept = file_.aside();
  for (const Replacement* one : {&file_, data_file_ ? &*data_file_ : &file_}) {
    if (one->aside()) error = error.renamed(one->path(), one->name());
  }
  if (data_file_) data_file_->remove();
  const bool gone = file_.remove();
  const int code = error.code();
  if (Cancellation::ended(outcome)) {
    if (kept) return fail(code, "{} cancelled: '{}' is as it was", verb, file_.name());
    if (gone) {
      return fail(code, "{} cancelled: the incomplete '{}' has been removed", verb, file_.name());
    }
    return fail(code, "{} cancelled: '{}' is incomplete", verb, file_.name());
  }
  if (kept && (code == ENOSPC || code == EDQUOT)) {
    return fail(code, "{} ('{}' is as it was; removing it first would give its space)",
                error.message(), file_.name());
  }
  return std::unexpected(std::move(error));
}

}  // namespace platter::img

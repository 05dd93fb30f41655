#include "block/node/open_state.h"

namespace platter {
namespace {

Result<void> check_create_options(const DriverType& type, const Options& options) {
  for (const auto& [key, value] : options) {
    const auto known = std::ranges::find(type.create_options, key, &CreateOption::name);
    if (known == type.create_options.end()) return fail(EINVAL, "Invalid parameter '{}'", key);
    Options one;
    one.set(key, value);
    switch (known->type) {
      case CreateOption::Type::kString:
        break;
      case CreateOption::Type::kSize: {
        const auto size = one.take_size(key);
        PLATTER_TRY(size);
        break;
      }
      case CreateOption::Type::kNumber: {
        const auto number = one.take_number(key);
        PLATTER_TRY(number);
        break;
      }
      case CreateOption::Type::kBool: {
        const auto flag = one.take_bool(key);
        PLATTER_TRY(flag);
        break;
      }
    }
  }
  return {};
}

bool knows(const DriverType& type, std::string_view option) {
  return std::ranges::find(type.create_options, option, &CreateOption::name) !=
         type.create_options.end();
}

// Takes out of `options` those that the format does not know and the protocol does.
Options take_protocol_options(const DriverType& format, const DriverType& protocol,
                              Options& options) {
  Options taken;
  for (const CreateOption& option : protocol.create_options) {
    if (knows(format, option.name)) continue;
    if (auto value = options.take_string(option.name)) {
      taken.set(std::string(option.name), std::move(*value));
    }
  }
  return taken;
}

Result<const DriverType*> protocol_of(const std::string& filename) {
  const DriverType* type = protocol_for(filename);
  if (!type) return fail(EINVAL, "Unknown protocol '{}'", protocol_prefix(filename));
  return type;
}

}  // namespace

Task<Result<void>> create_image(std::string format, std::string filename, std::uint64_t size,
                                Options options, std::string data_filename) {
  const DriverType* type = find_driver(format);
  if (!type) co_return fail(EINVAL, "Unknown file format '{}'", format);
  if (!type->create)
    co_return fail(ENOTSUP, "Format driver '{}' does not support image creation", format);
  Options protocol_options;
  if (!type->protocol) {
    const Result<const DriverType*> protocol = protocol_of(filename);
    PLATTER_CO_TRY(protocol);
    if (!(*protocol)->create) {
      co_return fail(ENOTSUP, "Protocol driver '{}' does not support image creation",
                     (*protocol)->name);
    }
    protocol_options = take_protocol_options(*type, **protocol, options);
    const Result<void> valid = check_create_options(**protocol, protocol_options);
    PLATTER_CO_TRY(valid);
  }
  const Result<void> valid = check_create_options(*type, options);
  PLATTER_CO_TRY(valid);
  CreateRequest request{.filename = std::move(filename),
                        .size = size,
                        .options = std::move(options),
                        .protocol_options = std::move(protocol_options),
                        .data_filename = std::move(data_filename)};
  auto created = co_await type->create(std::move(request));
  co_return created;
}

Task<Result<void>> create_protocol(std::string filename, std::uint64_t size, Options options) {
  const Result<const DriverType*> protocol = protocol_of(filename);
  PLATTER_CO_TRY(protocol);
  if (!(*protocol)->create) {
    co_return fail(ENOTSUP, "Protocol driver '{}' does not support image creation",
                   (*protocol)->name);
  }
  const Result<void> valid = check_create_options(**protocol, options);
  PLATTER_CO_TRY(valid);
  CreateRequest request{
      .filename = std::move(filename), .size = size, .options = std::move(options)};
  auto created = co_await (*protocol)->create(std::move(request));
  co_return created;
}

Task<Result<Edge>> open_protocol(std::string filename, OpenFlags flags, std::string user) {
  Result<Options> options = Options::from_filename(filename);
  PLATTER_CO_TRY(options);
  detail::NodeRequest request{.options = std::move(*options),
                              .format = {},
                              .flags = detail::storage_flags(flags),
                              .role = detail::Role::kStorage,
                              .display = std::move(filename),
                              .depth = 0,
                              .overlay = nullptr};
  auto node = co_await detail::open_new_node(std::move(request));
  PLATTER_CO_TRY(node);
  const Permissions rights = flags.read_only ? Permissions::reader() : Permissions::writer();
  auto edge = co_await Edge::attach(*node, std::move(user), rights);
  if (!edge) {
    auto closed = co_await detail::close_unattached(std::move(*node));
    static_cast<void>(closed);
  }
  co_return edge;
}

}  // namespace platter

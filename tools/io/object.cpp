// --object: secrets, and the objects of QEMU's that are there and used by nothing here.
#include "block/crypto/object.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <span>

#include "block/crypto/secret.h"
#include "tools/io/open.h"

namespace platter::io_tool {
namespace {

struct Property {
  enum class Type : std::uint8_t { kString, kInteger, kStruct };
  std::string_view name;
  Type type;
  const char* type_name;  // as help has it
  bool needed = false;
};

struct ObjectType {
  std::string_view name;
  std::span<const Property> properties;
};

using enum Property::Type;
constexpr std::array<Property, 5> kSecret{{{"data", kString, "string"},
                                           {"file", kString, "string"},
                                           {"format", kString, "QCryptoSecretFormat"},
                                           {"iv", kString, "string"},
                                           {"keyid", kString, "string"}}};
constexpr std::array<Property, 2> kAuthzList{
    {{"policy", kString, "QAuthZListPolicy"}, {"rules", kStruct, "QAuthZListRule"}}};
constexpr std::array<Property, 1> kAuthzSimple{{{"identity", kString, "string", true}}};
constexpr std::array<Property, 2> kThreadContext{
    {{"cpu-affinity", kStruct, "int"}, {"node-affinity", kStruct, "int"}}};
constexpr std::array<Property, 20> kThrottleGroup{{{"limits", kStruct, "ThrottleLimits"},
                                                   {"x-bps-read-max-length", kInteger, "int"},
                                                   {"x-bps-read-max", kInteger, "int"},
                                                   {"x-bps-read", kInteger, "int"},
                                                   {"x-bps-total-max-length", kInteger, "int"},
                                                   {"x-bps-total-max", kInteger, "int"},
                                                   {"x-bps-total", kInteger, "int"},
                                                   {"x-bps-write-max-length", kInteger, "int"},
                                                   {"x-bps-write-max", kInteger, "int"},
                                                   {"x-bps-write", kInteger, "int"},
                                                   {"x-iops-read-max-length", kInteger, "int"},
                                                   {"x-iops-read-max", kInteger, "int"},
                                                   {"x-iops-read", kInteger, "int"},
                                                   {"x-iops-size", kInteger, "int"},
                                                   {"x-iops-total-max-length", kInteger, "int"},
                                                   {"x-iops-total-max", kInteger, "int"},
                                                   {"x-iops-total", kInteger, "int"},
                                                   {"x-iops-write-max-length", kInteger, "int"},
                                                   {"x-iops-write-max", kInteger, "int"},
                                                   {"x-iops-write", kInteger, "int"}}};

// In the order of the help. All but secrets are for nodes and servers that name them, which are not
// to be had here: a command line that only defines one works as with QEMU.
constexpr std::array<ObjectType, 5> kTypes{{{"authz-list", kAuthzList},
                                            {"authz-simple", kAuthzSimple},
                                            {"secret", kSecret},
                                            {"thread-context", kThreadContext},
                                            {"throttle-group", kThrottleGroup}}};

const ObjectType* find_type(const std::string* name) {
  const auto* const found = std::ranges::find_if(
      kTypes, [&](const ObjectType& type) { return name && type.name == *name; });
  return found == kTypes.end() ? nullptr : found;
}

bool is_integer(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

bool is_help(std::string_view word) { return word == "help" || word == "?"; }

void print_help(const ObjectType* type) {
  if (type == nullptr) {
    print("List of user creatable objects:\n");
    for (const ObjectType& one : kTypes) print("  {}\n", one.name);
    return;
  }
  print("{} options:\n", type->name);
  for (const Property& property : type->properties)
    print("  {}=<{}>\n", property.name, property.type_name);
}

Result<void> check_properties(const ObjectType& type, Options& options) {
  for (const Property& property : type.properties) {
    static_cast<void>(options.take_child(property.name));
    const std::optional<std::string> value = options.take_string(property.name);
    if (!value && property.needed) return fail(EINVAL, "Parameter '{}' is missing", property.name);
    if (!value) continue;
    if (property.type == kInteger && !is_integer(*value))
      return fail(EINVAL, "Parameter '{}' expects integer", property.name);
    if (property.name == "policy" && *value != "deny" && *value != "allow")
      return fail(EINVAL, "Parameter 'policy' does not accept value '{}'", *value);
  }
  if (!options.empty()) return fail(EINVAL, "Parameter '{}' is unexpected", options.begin()->first);
  return {};
}

Result<void> add_unused(Session& session, const ObjectType& type, Options options) {
  options.take_string("qom-type");
  const std::optional<std::string> id = options.take_string("id");
  if (!id) return fail(EINVAL, "Parameter 'id' is missing");
  const Result<void> checked = check_properties(type, options);
  PLATTER_TRY(checked);
  const Result<void> named = crypto::check_object_id(*id);
  PLATTER_TRY(named);
  return session.add_object(*id);
}

}  // namespace

std::optional<int> take_object(Session& session, std::string_view text) {
  Result<Options> options = crypto::read_object(text);
  const std::string* const given = options ? options->peek("qom-type") : nullptr;
  const ObjectType* const type = find_type(given);
  if (options && (options->has("help") || options->has("?") || (given && is_help(*given)))) {
    print_help(type);
    return 0;
  }
  Result<void> added;
  if (type == nullptr || type->name == "secret") {
    added = crypto::add_secret_object(text);
    // All objects share one set of names.
    if (added) added = session.add_object(*options->peek("id"));
  } else {
    added = add_unused(session, *type, std::move(*options));
  }
  if (added) return std::nullopt;
  session.complain(added.error());
  return 1;
}

}  // namespace platter::io_tool

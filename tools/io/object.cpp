// --object: secrets, and the objects of QEMU's that nothing here could use.
#include "block/crypto/object.h"

#include <algorithm>
#include <array>

#include "block/crypto/secret.h"
#include "tools/io/open.h"

namespace platter::io_tool {
namespace {

constexpr std::string_view kSecretHelp =
    "secret options:\n"
    "  data=<string>\n"
    "  file=<string>\n"
    "  format=<QCryptoSecretFormat>\n"
    "  iv=<string>\n"
    "  keyid=<string>\n";

// What only nodes or servers of QEMU's make use of: a command line that defines one and goes no
// further works there.
constexpr std::array<std::string_view, 6> kUnused{"authz-list",     "authz-list-file",
                                                  "authz-simple",   "main-loop",
                                                  "thread-context", "throttle-group"};

}  // namespace

std::optional<int> take_object(const Session& session, std::string_view text) {
  const Result<Options> options = crypto::read_object(text);
  const std::string* const type = options ? options->peek("qom-type") : nullptr;
  if (options && (options->has("help") || (type && *type == "help"))) {
    put(type && *type == "secret" ? kSecretHelp : "List of user creatable objects:\n  secret\n");
    return 0;
  }
  if (type && std::ranges::find(kUnused, *type) != kUnused.end() && options->has("id")) {
    session.complain(fmt::format("warning: objects of type '{}' are not supported", *type));
    return std::nullopt;
  }
  const Result<void> added = crypto::add_secret_object(text);
  if (added) return std::nullopt;
  session.complain(added.error());
  return 1;
}

}  // namespace platter::io_tool

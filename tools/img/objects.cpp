// --object: user-creatable objects. The tools know secrets.
#include "block/crypto/secret.h"
#include "tools/img/common.h"

namespace platter::img {

bool take_object(std::string_view text) {
  const Result<void> added = crypto::add_secret_object(text);
  if (!added) report_error(added.error());
  return added.has_value();
}

}  // namespace platter::img

// --object: user-creatable objects. The tool knows secrets; they are checked and kept for the
// drivers that will ask for a key by its id.
#include <unistd.h>

#include <cctype>
#include <cstdio>
#include <set>

#include "tools/img/common.h"

namespace platter::img {
namespace {

bool is_identifier(std::string_view text) {
  if (text.empty() || std::isalpha(static_cast<unsigned char>(text[0])) == 0) return false;
  for (const char c : text) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '-' && c != '.' && c != '_')
      return false;
  }
  return true;
}

}  // namespace

bool take_object(std::string_view text) {
  static std::set<std::string> ids;

  // The first element may leave out its key: it is the type.
  std::string spelled(text);
  const std::size_t end = spelled.find_first_of(",=");
  if (end == std::string::npos || spelled[end] == ',') spelled.insert(0, "qom-type=");
  Result<Options> options = Options::parse_keyval(spelled);
  if (!options) {
    report_text(options.error().message());
    return false;
  }
  const std::optional<std::string> type = options->take_string("qom-type");
  if (!type) {
    report("Parameter 'qom-type' is missing");
    return false;
  }
  const std::optional<std::string> id = options->take_string("id");
  if (!id) {
    report("Parameter 'id' is missing");
    return false;
  }
  if (*type != "secret") {
    report("Parameter 'qom-type' does not accept value '{}'", *type);
    return false;
  }
  if (!is_identifier(*id)) {
    report("Parameter 'id' expects an identifier");
    return false;
  }
  const std::optional<std::string> data = options->take_string("data");
  const std::optional<std::string> file = options->take_string("file");
  for (const char* known : {"format", "keyid", "iv"}) options->take_string(known);
  if (options->begin() != options->end()) {
    report("Parameter '{}' is unexpected", options->begin()->first);
    return false;
  }
  if (data.has_value() == file.has_value()) {
    report_text(data ? "'file' and 'data' are mutually exclusive"
                     : "Either 'file' or 'data' must be provided");
    return false;
  }
  if (file && ::access(file->c_str(), R_OK) != 0) {
    report("Unable to read {}: Failed to open file \u201c{}\u201d: {}", *file, *file,
           errno_text(errno));
    return false;
  }
  if (!ids.insert(*id).second) {
    report("attempt to add duplicate property '{}' to object (type 'container')", *id);
    return false;
  }
  return true;
}

}  // namespace platter::img

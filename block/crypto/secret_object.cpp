// The text of --object, and the reading of secrets from files.
#include <fcntl.h>
#include <unistd.h>

#include <cctype>
#include <optional>

#include "block/crypto/object.h"
#include "block/crypto/secret.h"

namespace platter::crypto {
namespace {

constexpr std::size_t kMaxSecret = std::size_t{1} << 20;  // bytes

bool is_identifier(std::string_view text) {
  if (text.empty() || std::isalpha(static_cast<unsigned char>(text[0])) == 0) return false;
  for (const char c : text) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '-' && c != '.' && c != '_')
      return false;
  }
  return true;
}

Result<SecretBytes> read_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return fail(errno, "Unable to read {}: Failed to open file \u201c{}\u201d: {}", path, path,
                errno_text(errno));
  }
  SecretBytes buffer(kMaxSecret + 1);
  std::size_t length = 0;
  ssize_t step = 1;
  while (step > 0 && length < buffer.size()) {
    step = ::read(fd, buffer.span().data() + length, buffer.size() - length);
    if (step < 0 && errno == EINTR) {
      step = 1;
      continue;
    }
    if (step > 0) length += static_cast<std::size_t>(step);
  }
  const int error = errno;
  ::close(fd);
  if (step < 0) return fail(error, "Unable to read {}: {}", path, errno_text(error));
  if (length > kMaxSecret) {
    return fail(EFBIG, "Unable to read {}: a secret has at most {} bytes", path, kMaxSecret);
  }
  return SecretBytes::of(std::span<const std::byte>(buffer.span().first(length)));
}

}  // namespace

Result<Options> read_object(std::string_view definition) {
  if (definition.starts_with('{')) return Options::parse_json(definition);
  // The first element may leave out its key: it is the type.
  std::string spelled(definition);
  const std::size_t end = spelled.find_first_of(",=");
  if (!spelled.empty() && (end == std::string::npos || spelled[end] == ','))
    spelled.insert(0, "qom-type=");
  Result<Options> options = Options::parse_keyval(spelled);
  wipe(spelled);
  return options;
}

Result<void> check_object_id(std::string_view id) {
  if (is_identifier(id)) return {};
  return std::unexpected<Error>(Error(EINVAL, "Parameter 'id' expects an identifier")
                                    .with_hint("Identifiers consist of letters, digits, '-', "
                                               "'.', '_', starting with a letter."));
}

Result<void> add_secret_object(std::string_view definition) {
  Result<Options> options = read_object(definition);
  PLATTER_TRY(options);
  const std::optional<std::string> type = options->take_string("qom-type");
  if (!type) return fail(EINVAL, "Parameter 'qom-type' is missing");
  if (*type != "secret") {
    return fail(EINVAL, "Parameter 'qom-type' does not accept value '{}'", *type);
  }
  const std::optional<std::string> id = options->take_string("id");
  if (!id) return fail(EINVAL, "Parameter 'id' is missing");
  const Result<void> named = check_object_id(*id);
  PLATTER_TRY(named);
  std::optional<std::string> data = options->take_string("data");
  const std::optional<std::string> file = options->take_string("file");
  const std::string format = options->take_string("format").value_or("raw");
  const std::optional<std::string> key = options->take_string("keyid");
  // Means something beside keyid only.
  options->take_string("iv");
  if (options->begin() != options->end()) {
    return fail(EINVAL, "Parameter '{}' is unexpected", options->begin()->first);
  }
  if (format != "raw" && format != "base64") {
    return fail(EINVAL, "Parameter 'format' does not accept value '{}'", format);
  }
  if (data.has_value() == file.has_value()) {
    return fail(EINVAL, "{}",
                data ? "'file' and 'data' are mutually exclusive"
                     : "Either 'file' or 'data' must be provided");
  }
  if (key) {
    const auto master = find_secret(*key);
    PLATTER_TRY(master);
    return fail(ENOTSUP, "secret '{}' is encrypted by secret '{}' (keyid), which is not supported",
                *id, *key);
  }
  Result<SecretBytes> value = data ? Result<SecretBytes>(SecretBytes::of(*data)) : read_file(*file);
  if (data) wipe(*data);
  PLATTER_TRY(value);
  if (format == "base64") {
    std::string text(value->size(), '\0');
    for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(value->span()[i]);
    value = decode_base64(text);
    wipe(text);
    PLATTER_TRY(value);
  }
  return add_secret(*id, std::move(*value));
}

}  // namespace platter::crypto

// JSON as QEMU reads it: what RFC 8259 allows, and strings in single quotes, as in
// json:{'driver':'raw'}. What it refuses, it refuses in QEMU's words.
//
// Texts may come from an image (a backing file's name): size and nesting are bounded.
// Threads: any, pure. Errors: EINVAL.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "block/base/error.h"

namespace platter::detail {

// The value of `text`. Numbers are the strings that stand there, true and false are "on" and "off".
Result<nlohmann::json> read_json(std::string_view text);

}  // namespace platter::detail

// The definitions of objects, as the option --object gives them.
//
// Threads: any; pure functions.
#pragma once

#include <string_view>

#include "block/node/options.h"

namespace platter::crypto {

// "TYPE,id=ID,..." or a JSON object with the key "qom-type", which the type is then found under.
Result<Options> read_object(std::string_view definition);

// Whether it can be an object's name.
Result<void> check_object_id(std::string_view id);

}  // namespace platter::crypto

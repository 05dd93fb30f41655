// The mutex of an open image's metadata, Core::mutex(), as annotations name it: one name for what
// every part of the engine reaches by a reference of its own (thread_annotations.h). So the check
// finds what is used without the mutex, but would not find that the mutex is another image's.
#pragma once

#include "block/base/mutex.h"

namespace platter::qcow2 {

inline constexpr MutexRole metadata_mutex;

}  // namespace platter::qcow2

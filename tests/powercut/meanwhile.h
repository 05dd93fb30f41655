// Snapshots that are taken and removed while the guest goes on: it does something before each write
// and flush of the operation, which waits as long. Needs a fault node below the image; without one
// the guest waits.
//
// Threads: one executor.
#pragma once

#include "powercut/guest.h"

namespace platter::powercut {

// Takes "second".
Task<Result<void>> snapshot_while_writing(Guest& g);
// Removes "first".
Task<Result<void>> remove_while_writing(Guest& g);

}  // namespace platter::powercut

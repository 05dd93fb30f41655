// The signals that end a machine: its disks are flushed and closed first.
//
// Threads: any.
#pragma once

#include <csignal>

namespace platter::run {

// SIGINT, SIGTERM and SIGHUP, but for those that whoever started the program has had ignored
// (nohup).
sigset_t end_signals();

}  // namespace platter::run

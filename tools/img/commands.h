// The sub-commands. Each gets its own name as argv[0] and gives the exit status.
// Threads: the main thread, one call at a time.
#pragma once

namespace platter::img {

int run_amend(int argc, char** argv);
int run_bench(int argc, char** argv);
int run_bitmap(int argc, char** argv);
int run_check(int argc, char** argv);
int run_commit(int argc, char** argv);
int run_compare(int argc, char** argv);
int run_convert(int argc, char** argv);
int run_create(int argc, char** argv);
int run_dd(int argc, char** argv);
int run_info(int argc, char** argv);
int run_map(int argc, char** argv);
int run_measure(int argc, char** argv);
int run_rebase(int argc, char** argv);
int run_resize(int argc, char** argv);
int run_snapshot(int argc, char** argv);
int run_stream(int argc, char** argv);

// The whole manual, as --help prints it; gives 0.
int print_help();
int print_version();

}  // namespace platter::img

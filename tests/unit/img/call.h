// Runs a verb of `platter img` in this process.
#pragma once

#include <getopt.h>

#include <string>
#include <vector>

namespace platter::img {

inline int call(int (*verb)(int, char**), std::vector<std::string> words) {
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  optind = 0;
  return verb(static_cast<int>(words.size()), argv.data());
}

}  // namespace platter::img

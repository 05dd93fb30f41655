// A shared library that is loaded when it is first needed: a program that never comes to it starts
// without it and works where it is not installed.
//
// Ownership: a library that was loaded stays loaded until the process ends. Threads: any.
#pragma once

#include <string>
#include <string_view>

#include "block/base/error.h"

namespace platter {

// A value; copies stand for the same library.
class SharedLibrary {
 public:
  // Loads the library with the file name `soname`. ENOENT, naming the Debian package that brings
  // it, when it cannot be loaded.
  static Result<SharedLibrary> load(std::string_view soname, std::string_view package);

  // Points `function` to the library's symbol `name`. ENOSYS when the library has none.
  template <class Function>
  Result<void> find(const char* name, Function*& function) const {
    const Result<void*> symbol = find_symbol(name);
    PLATTER_TRY(symbol);
    // POSIX's dlsym gives functions as void pointers.
    function = reinterpret_cast<Function*>(*symbol);
    return {};
  }

 private:
  SharedLibrary(std::string soname, void* handle) : soname_(std::move(soname)), handle_(handle) {}
  Result<void*> find_symbol(const char* name) const;

  std::string soname_;
  void* handle_;  // never closed: others may hold its functions
};

}  // namespace platter

#include "block/base/library.h"

#include <dlfcn.h>

#include <cerrno>

namespace platter {

Result<SharedLibrary> SharedLibrary::load(std::string_view soname, std::string_view package) {
  std::string name(soname);
  void* const handle = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* const reason = ::dlerror();
    return fail(ENOENT, "could not load the library '{}' of the package '{}': {}", soname, package,
                reason ? reason : "unknown reason");
  }
  return SharedLibrary(std::move(name), handle);
}

Result<void*> SharedLibrary::find_symbol(const char* name) const {
  void* const symbol = ::dlsym(handle_, name);
  if (symbol == nullptr) return fail(ENOSYS, "the library '{}' has no '{}'", soname_, name);
  return symbol;
}

}  // namespace platter

// What this program needs of fmt's library, compiled into it (PLATTER_STATIC_RUNTIME):
// distributions may have that library as a shared one only, and it would bring the shared C++
// runtime back.
#include <fmt/format-inl.h>

namespace fmt::detail {

template char decimal_point_impl<char>(locale_ref);
template thousands_sep_result<char> thousands_sep_impl<char>(locale_ref);

}  // namespace fmt::detail

// The log: spdlog, with its formatting left to libfmt.
//
// Role: whoever logs includes this, not spdlog itself.
// fmt's vformat_to<char>() is a template. libfmt has it, but its header lets every file that logs
// make it again: 80 KB of code, over which the compiler takes longer than over the rest of such a
// file.
#pragma once

#include <spdlog/spdlog.h>

#if FMT_VERSION / 10000 == 9
namespace fmt::detail {
extern template void vformat_to<char>(buffer<char>&, basic_string_view<char>,
                                      basic_format_args<FMT_BUFFER_CONTEXT(char)>, locale_ref);
}  // namespace fmt::detail
#endif

// How much less long tests do under the sanitizers, which are several times slower: what is left to
// chance there is tried in full without them.
#pragma once

namespace sanproxy::test {

#ifdef __SANITIZE_ADDRESS__
inline constexpr unsigned kSanitizedShare = 4;
#else
inline constexpr unsigned kSanitizedShare = 1;
#endif

}  // namespace sanproxy::test

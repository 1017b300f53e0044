#include "lwproto/auth/admission.h"

#include <algorithm>
#include <charconv>

namespace sanproxy::auth {
namespace {

constexpr Status malformed() {
  return Status::error(Code::kInvalidArgument,
                       "expected \"any\", \"uid:NUMBER\", \"key:NAME\" or \"cert:NAME\"");
}

// The rest of `text` behind `prefix`; empty if it has another or nothing follows.
std::string_view behind(std::string_view text, std::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix ? text.substr(prefix.size()) : std::string_view();
}

}  // namespace

Result<AllowEntry> AllowEntry::parse(std::string_view text) {
  AllowEntry entry;
  if (text == "any") return entry;
  if (const std::string_view digits = behind(text, "uid:"); !digits.empty()) {
    entry.kind = Kind::kUid;
    // For an unsigned number from_chars takes nothing but digits: no sign, no space.
    const char* end = digits.data() + digits.size();
    const auto [stop, error] = std::from_chars(digits.data(), end, entry.uid);
    if (error != std::errc() || stop != end) return malformed();
    return entry;
  }
  entry.kind = Kind::kKey;
  entry.name = behind(text, "key:");
  if (!entry.name.empty()) return entry;
  entry.kind = Kind::kCertificate;
  entry.name = behind(text, "cert:");
  if (!entry.name.empty()) return entry;
  return malformed();
}

bool AllowEntry::matches(const Credentials& who) const {
  switch (kind) {
    case Kind::kAny:
      return true;
    case Kind::kUid:
      return who.uid == std::int64_t{uid};
    case Kind::kKey:
      return std::find(who.keys.begin(), who.keys.end(), name) != who.keys.end();
    case Kind::kCertificate:
      return !name.empty() && who.certificate_name == name;
  }
  return false;
}

bool allows(const AllowList& list, const Credentials& who) {
  return std::any_of(list.begin(), list.end(),
                     [&](const AllowEntry& entry) { return entry.matches(who); });
}

}  // namespace sanproxy::auth

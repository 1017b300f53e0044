// Admission: who may join a service.
//
// Document: docs/security.md "Whose list decides".
// Role: matches what a peer has shown against allow lists. Pure: knows no fabric, no key, no TLS;
//   who fills in Credentials has verified them.
// Thread: any.
// Invariants:
//   1. Nothing that is missing or unknown (-1, an empty name) ever matches an entry but `any`.
//   2. An empty list allows nobody.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lwproto/base/status.h"

namespace sanproxy::auth {

// What a peer has shown.
struct Credentials {
  std::int64_t uid = -1;          // of its process, as the kernel says; -1 where unknown
  std::string certificate_name;   // verified by TLS; empty where there is none
  std::vector<std::string> keys;  // that it has proven to have
};

struct AllowEntry {
  enum class Kind : std::uint8_t { kAny, kUid, kKey, kCertificate };
  Kind kind = Kind::kAny;
  std::uint32_t uid = 0;  // kUid
  std::string name;       // kKey, kCertificate

  // "any", "uid:33", "key:web", "cert:app1.example". kInvalidArgument for anything else.
  static Result<AllowEntry> parse(std::string_view text);
  bool matches(const Credentials& who) const;
  bool operator==(const AllowEntry&) const = default;
};

using AllowList = std::vector<AllowEntry>;

inline AllowList anybody() { return {AllowEntry{}}; }
bool allows(const AllowList& list, const Credentials& who);

}  // namespace sanproxy::auth

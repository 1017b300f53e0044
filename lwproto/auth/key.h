// Key: a secret that application nodes and proxies share, under a name.
//
// Document: docs/security.md "Keys".
// Role: holds the secret's bytes and reads them from a file. What is done with it: proof.h.
// Owner: whoever was configured with it. Thread: values; start-up only.
// Invariants:
//   1. The name is one that may travel (wire::key_name_legal), the secret has kSecretBytesMin to
//      kSecretBytesMax bytes.
//   2. The secret is overwritten when the Key goes, and is never part of a text.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lwproto/base/status.h"

namespace sanproxy::auth {

class Key {
 public:
  static constexpr std::size_t kSecretBytesMin = 16;
  static constexpr std::size_t kSecretBytesMax = 4096;

  // kInvalidArgument with the rule that is broken.
  static Result<Key> create(std::string_view name, std::span<const std::byte> secret);
  // All bytes of the file but line ends behind the last other byte. Refuses (kPermission) what
  // others than its owner and group may read, and anything but a regular file.
  static Result<Key> from_file(std::string_view name, const std::string& path);

  ~Key();
  Key(const Key&) = default;
  Key(Key&&) noexcept = default;
  Key& operator=(Key other) noexcept {  // what was here is overwritten with `other`
    name_.swap(other.name_);
    secret_.swap(other.secret_);
    return *this;
  }

  const std::string& name() const { return name_; }
  std::span<const std::byte> secret() const { return secret_; }

 private:
  Key(std::string_view name, std::span<const std::byte> secret)
      : name_(name), secret_(secret.begin(), secret.end()) {}

  std::string name_;
  std::vector<std::byte> secret_;
};

}  // namespace sanproxy::auth

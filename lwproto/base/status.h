// Status and Result: how every operation that can fail in normal running reports it.
//
// Role: the one error vocabulary of the project. No exception is thrown while data moves;
//   exceptions are for configuration and start-up only.
// Thread: values; freely copied, nothing shared. No allocation: texts are string literals.
// Invariants:
//   1. A Status is either ok() or carries a code and a literal text; sys_errno() is 0 unless a
//      system call failed.
//   2. Code::kAgain always means "no resource at this moment: back-pressure, try later", never
//      a failure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

namespace sanproxy {

enum class Code : std::uint8_t {
  kOk = 0,
  kAgain,            // no credit, buffer or queue space now; retry when told (back-pressure)
  kExhausted,        // a named limit is reached; the request is refused
  kInvalidArgument,  // the caller (configuration, program) asked for something impossible
  kProtocol,         // the peer sent something that the protocol forbids
  kNotFound,
  kExists,
  kRefused,
  kPermission,
  kDisconnected,
  kTimeout,
  kUnsupported,
  kSystem,  // a system call failed; see sys_errno()
};

// A short name such as "protocol", for logs and metrics labels.
const char* code_name(Code code);

// What an errno means, in English whatever the locale, for logs and pages. Any thread.
std::string errno_text(int error);

class [[nodiscard]] Status {
 public:
  constexpr Status() = default;
  // `text` must be a string literal (it is not copied).
  static constexpr Status error(Code code, const char* text, int sys_errno = 0) {
    Status s;
    s.code_ = code;
    s.text_ = text;
    s.sys_errno_ = sys_errno;
    return s;
  }
  static constexpr Status again() { return error(Code::kAgain, "no resource at this moment"); }

  constexpr bool ok() const { return code_ == Code::kOk; }
  constexpr bool is_again() const { return code_ == Code::kAgain; }
  constexpr Code code() const { return code_; }
  constexpr const char* text() const { return text_; }
  constexpr int sys_errno() const { return sys_errno_; }
  // "protocol: offset gap" or "system: open /dev/net/tun (Permission denied)".
  std::string to_string() const;

 private:
  const char* text_ = "";
  int sys_errno_ = 0;
  Code code_ = Code::kOk;
};

// A value or the Status that says why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT: implicit by design
  Result(Status status) : status_(status) {}     // NOLINT: implicit by design
  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return std::move(*value_); }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace sanproxy

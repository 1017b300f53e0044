// Status and Result: how the application library reports what can fail.
//
// Role: the error vocabulary of the public interface. The library throws nothing.
// Thread: values. No allocation: texts are string literals.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

namespace sanproxy::app {

enum class Code : std::uint8_t {
  kOk = 0,
  kAgain,            // not now: wait for on_writable() or more events, then try again
  kExhausted,        // a named limit (NodeOptions) is reached
  kInvalidArgument,  // the call cannot ever work like this
  kProtocol,         // the proxy sent something that the protocol forbids
  kNotFound,
  kExists,
  kRefused,
  kPermission,
  kDisconnected,  // no proxy is connected, or the connection is gone
  kTimeout,
  kUnsupported,
  kSystem,  // a system call failed; see sys_errno()
};

class [[nodiscard]] Status {
 public:
  constexpr Status() = default;
  constexpr Status(Code code, const char* text, int sys_errno = 0)
      : text_(text), sys_errno_(sys_errno), code_(code) {}  // `text`: a string literal

  constexpr bool ok() const { return code_ == Code::kOk; }
  constexpr bool is_again() const { return code_ == Code::kAgain; }
  constexpr Code code() const { return code_; }
  constexpr const char* text() const { return text_; }
  constexpr int sys_errno() const { return sys_errno_; }
  std::string to_string() const;  // "refused: text" or "system: text (No such file ...)"

 private:
  const char* text_ = "";
  int sys_errno_ = 0;
  Code code_ = Code::kOk;
};

// A value, or the Status that says why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT: implicit by design
  Result(Status status) : status_(status) {}     // NOLINT: implicit by design
  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() & { return *value_; }
  T&& value() && { return std::move(*value_); }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace sanproxy::app

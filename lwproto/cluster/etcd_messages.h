// The bodies of etcd's JSON gateway (/v3/*): made and read.
//
// Document: docs/cluster.md "etcd".
// Role: pure: no I/O. Keys and values are base64 in JSON, 64-bit numbers are strings.
// Thread: any.
// Invariants:
//   1. Whatever an answer contains, reading it yields a value or a Status, never an exception.
//   2. A key or a value beyond its bound is not kept: its KeyValue says so.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "lwproto/base/status.h"
#include "lwproto/cluster/bounds.h"

namespace sanproxy::cluster {

std::string to_base64(std::string_view bytes);
// kProtocol for anything that is not whole, padded base64.
Result<std::string> from_base64(std::string_view text);

// The first key behind all that begin with `prefix`.
std::string prefix_end(std::string prefix);

// Why a value is not here.
enum class Fault : std::uint8_t { kNone, kKeyTooLong, kValueTooLong, kTotalTooLong };

struct KeyValue {
  std::string key, value;  // kKeyTooLong: the beginning of the key
  std::int64_t mod_revision = 0;
  std::int64_t lease = 0;
  Fault fault = Fault::kNone;
};

struct RangeAnswer {
  std::int64_t revision = 0;  // of the store
  std::vector<KeyValue> values;
  bool more = false;
  std::string last_key;    // whole, where `more`
  bool truncated = false;  // there are more keys than was to be listed; these are the first
};

struct WatchEvent {
  bool deleted = false;
  KeyValue value;
};

struct WatchAnswer {
  std::int64_t revision = 0;
  bool canceled = false;
  std::int64_t compact_revision = 0;  // not 0: what was to be watched is gone, list again
  std::string reason;
  std::vector<WatchEvent> events;
};

// --- requests. `key` and `end`: all keys from `key` to before `end`; one key without `end`.
nlohmann::json range_request(const std::string& key, const std::string& end,
                             std::int64_t at_revision = 0, std::int64_t limit = 0);
nlohmann::json watch_request(const std::string& key, const std::string& end,
                             std::int64_t from_revision);
// Parts of a transaction.
nlohmann::json put_operation(const std::string& key, const std::string& value,
                             std::int64_t lease = 0);
nlohmann::json delete_operation(const std::string& key);
// Holds while no key of the range has changed after `revision` (a range of none: holds).
nlohmann::json unchanged_since(const std::string& key, const std::string& end,
                               std::int64_t revision);
nlohmann::json absent(const std::string& key);
nlohmann::json transaction(nlohmann::json compare, nlohmann::json operations);

// --- answers
Result<RangeAnswer> read_range(const nlohmann::json& answer,
                               std::size_t value_bytes_max = Bounds{}.value_bytes_max);
// One line of the stream.
Result<WatchAnswer> read_watch(std::string_view line,
                               std::size_t value_bytes_max = Bounds{}.value_bytes_max);
// A field that is a number from 0 to 2^63 - 1, as a string or as itself; 0 where absent.
Result<std::int64_t> read_number(const nlohmann::json& object, const char* field);
// etcd's own words, for people; "" if there are none.
std::string error_text(const nlohmann::json& answer);

}  // namespace sanproxy::cluster

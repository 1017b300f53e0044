#include "lwproto/cluster/etcd_messages.h"

#include <array>
#include <charconv>

#include "lwproto/cluster/bounded_json.h"

namespace sanproxy::cluster {
namespace {

using nlohmann::json;

constexpr std::string_view kAlphabet =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

constexpr Status malformed() {
  return Status::error(Code::kProtocol, "an answer of etcd is not what it should be");
}

std::uint32_t byte_at(std::string_view bytes, std::size_t i) {
  return i < bytes.size() ? static_cast<std::uint8_t>(bytes[i]) : 0u;
}

// A base64 field; "" where absent.
Result<std::string> read_bytes(const json& object, const char* field) {
  const auto it = object.find(field);
  if (it == object.end()) return std::string();
  if (!it->is_string()) return malformed();
  return from_base64(it->get_ref<const std::string&>());
}

// A number that may be counted on from.
Result<std::int64_t> read_revision_field(const json& object, const char* field) {
  auto out = read_number(object, field);
  if (out.ok() && *out > kRevisionMax) return malformed();
  return out;
}

Result<KeyValue> read_key_value(const json& object, std::size_t value_bytes_max) {
  if (!object.is_object()) return malformed();
  KeyValue out;
  auto key = read_bytes(object, "key");
  auto value = read_bytes(object, "value");
  const auto revision = read_revision_field(object, "mod_revision");
  const auto lease = read_number(object, "lease");
  if (!key.ok() || !value.ok() || !revision.ok() || !lease.ok()) return malformed();
  if (key->size() > kKeyBytesMax) {
    key->resize(kKeyBytesMax / 8);
    value->clear();
    out.fault = Fault::kKeyTooLong;
  } else if (value->size() > value_bytes_max) {
    value->clear();
    out.fault = Fault::kValueTooLong;
  }
  out.key = std::move(*key);
  out.value = std::move(*value);
  out.mod_revision = *revision;
  out.lease = *lease;
  return out;
}

Result<std::int64_t> read_revision(const json& answer) {
  const auto header = answer.find("header");
  if (header == answer.end() || !header->is_object()) return malformed();
  return read_revision_field(*header, "revision");
}

bool flag(const json& object, const char* field) {
  const auto it = object.find(field);
  return it != object.end() && it->is_boolean() && it->get<bool>();
}

}  // namespace

std::string to_base64(std::string_view bytes) {
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::uint32_t three =
        byte_at(bytes, i) << 16 | byte_at(bytes, i + 1) << 8 | byte_at(bytes, i + 2);
    const std::size_t there = std::min<std::size_t>(bytes.size() - i, 3);
    for (std::size_t c = 0; c < 4; ++c) {
      out += c <= there ? kAlphabet[three >> (18 - 6 * c) & 63] : '=';
    }
  }
  return out;
}

Result<std::string> from_base64(std::string_view text) {
  if (text.size() % 4 != 0) return malformed();
  std::string out;
  out.reserve(text.size() / 4 * 3);
  for (std::size_t i = 0; i < text.size(); i += 4) {
    std::size_t there = 4;
    if (i + 4 == text.size()) {
      while (there > 2 && text[i + there - 1] == '=') --there;
    }
    std::uint32_t three = 0;
    for (std::size_t c = 0; c < 4; ++c) {
      const std::size_t digit = c < there ? kAlphabet.find(text[i + c]) : 0;
      if (digit == std::string_view::npos) return malformed();
      three = three << 6 | static_cast<std::uint32_t>(digit);
    }
    for (std::size_t b = 0; b + 1 < there; ++b) {
      out += static_cast<char>(three >> (16 - 8 * b) & 0xff);
    }
  }
  return out;
}

std::string prefix_end(std::string prefix) {
  while (!prefix.empty() && static_cast<std::uint8_t>(prefix.back()) == 0xff) prefix.pop_back();
  if (prefix.empty()) return std::string(1, '\0');  // to the end of all keys
  ++prefix.back();
  return prefix;
}

json range_request(const std::string& key, const std::string& end, std::int64_t at_revision,
                   std::int64_t limit) {
  json out = {{"key", to_base64(key)}};
  if (!end.empty()) out["range_end"] = to_base64(end);
  if (at_revision != 0) out["revision"] = std::to_string(at_revision);
  if (limit != 0) out["limit"] = std::to_string(limit);
  return out;
}

json watch_request(const std::string& key, const std::string& end, std::int64_t from_revision) {
  json create = {{"key", to_base64(key)}, {"start_revision", std::to_string(from_revision)}};
  if (!end.empty()) create["range_end"] = to_base64(end);
  return {{"create_request", create}};
}

json put_operation(const std::string& key, const std::string& value, std::int64_t lease) {
  json put = {{"key", to_base64(key)}, {"value", to_base64(value)}};
  if (lease != 0) put["lease"] = std::to_string(lease);
  return {{"request_put", put}};
}

json delete_operation(const std::string& key) {
  return {{"request_delete_range", {{"key", to_base64(key)}}}};
}

json unchanged_since(const std::string& key, const std::string& end, std::int64_t revision) {
  json out = {{"key", to_base64(key)},
              {"target", "MOD"},
              {"result", "LESS"},
              {"mod_revision", std::to_string(revision + 1)}};
  if (!end.empty()) out["range_end"] = to_base64(end);
  return out;
}

json absent(const std::string& key) {
  return {
      {"key", to_base64(key)}, {"target", "CREATE"}, {"result", "EQUAL"}, {"create_revision", "0"}};
}

json transaction(json compare, json operations) {
  return {{"compare", std::move(compare)}, {"success", std::move(operations)}};
}

Result<std::int64_t> read_number(const json& object, const char* field) {
  const auto it = object.find(field);
  if (it == object.end()) return std::int64_t{0};
  if (it->is_number_unsigned()) {
    const auto number = it->get<std::uint64_t>();
    if (number > static_cast<std::uint64_t>(INT64_MAX)) return malformed();
    return static_cast<std::int64_t>(number);
  }
  if (it->is_number_integer() && it->get<std::int64_t>() >= 0) return it->get<std::int64_t>();
  if (!it->is_string()) return malformed();
  const std::string& text = it->get_ref<const std::string&>();
  std::int64_t out = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (error != std::errc() || stop != text.data() + text.size()) return malformed();
  if (out < 0) return malformed();
  return out;
}

Result<RangeAnswer> read_range(const json& answer, std::size_t value_bytes_max) {
  if (!answer.is_object()) return malformed();
  RangeAnswer out;
  const auto revision = read_revision(answer);
  if (!revision.ok()) return revision.status();
  out.revision = *revision;
  out.more = flag(answer, "more");
  const auto values = answer.find("kvs");
  if (values == answer.end()) return out;
  if (!values->is_array()) return malformed();
  if (out.more && !values->empty()) {
    auto last = read_bytes(values->back(), "key");
    if (!last.ok()) return last.status();
    out.last_key = std::move(*last);
  }
  for (const json& one : *values) {
    auto value = read_key_value(one, value_bytes_max);
    if (!value.ok()) return value.status();
    out.values.push_back(std::move(*value));
  }
  return out;
}

Result<WatchAnswer> read_watch(std::string_view line, std::size_t value_bytes_max) {
  const json answer = parse_bounded(line);
  if (!answer.is_object()) return malformed();
  WatchAnswer out;
  const auto result = answer.find("result");
  if (result == answer.end() || !result->is_object()) {
    out.canceled = true;
    out.reason = error_text(answer);
    if (out.reason.empty()) return malformed();
    return out;
  }
  const auto revision = read_revision(*result);
  const auto compacted = read_revision_field(*result, "compact_revision");
  if (!revision.ok() || !compacted.ok()) return malformed();
  out.revision = *revision;
  out.compact_revision = *compacted;
  out.canceled = flag(*result, "canceled") || out.compact_revision != 0;
  if (const auto reason = result->find("cancel_reason");
      reason != result->end() && reason->is_string()) {
    out.reason = printable(reason->get_ref<const std::string&>());
  }
  const auto events = result->find("events");
  if (events == result->end()) return out;
  if (!events->is_array()) return malformed();
  for (const json& one : *events) {
    if (!one.is_object() || !one.contains("kv")) return malformed();
    auto value = read_key_value(one["kv"], value_bytes_max);
    if (!value.ok()) return value.status();
    const auto type = one.find("type");
    out.events.push_back({type != one.end() && *type == "DELETE", std::move(*value)});
  }
  return out;
}

std::string error_text(const json& answer) {
  if (!answer.is_object()) return "";
  const auto error = answer.find("error");
  if (error == answer.end()) return "";
  if (error->is_string()) return printable(error->get_ref<const std::string&>());
  if (!error->is_object()) return "";
  for (const char* field : {"message", "http_status"}) {
    const auto text = error->find(field);
    if (text != error->end() && text->is_string())
      return printable(text->get_ref<const std::string&>());
  }
  return "";
}

}  // namespace sanproxy::cluster

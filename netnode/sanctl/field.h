// What is in the JSON of somebody else: an answer may be of another version, or of no node at all.
//
// Role: pure; what is missing, or of another type, is as what the caller says otherwise.
#pragma once

#include <nlohmann/json.hpp>

namespace sanproxy::sanctl {

template <typename T>
T field(const nlohmann::json& object, const char* name, T otherwise) {
  const auto it = object.find(name);
  if (it == object.end()) return otherwise;
  try {
    return it->get<T>();
  } catch (const nlohmann::json::exception&) {
    return otherwise;
  }
}

inline const nlohmann::json& list_in(const nlohmann::json& object, const char* name) {
  static const nlohmann::json kNone = nlohmann::json::array();
  const auto it = object.find(name);
  return it != object.end() && it->is_array() ? *it : kNone;
}

inline const nlohmann::json& object_in(const nlohmann::json& object, const char* name) {
  static const nlohmann::json kNone = nlohmann::json::object();
  const auto it = object.find(name);
  return it != object.end() && it->is_object() ? *it : kNone;
}

}  // namespace sanproxy::sanctl

// Metrics: builds a page in the Prometheus text exposition format 0.0.4.
//
// Role: every metric of the project is written through this, with the prefix "sanproxy_".
// Thread: a value. Control plane: allocates freely.
// Invariants:
//   1. Samples of one name follow one another: HELP and TYPE are written where the name changes.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

namespace sanproxy::daemon {

class Metrics {
 public:
  void value(const char* name, const char* type, const char* help, std::uint64_t v,
             const std::string& labels = "") {
    if (name != last_) {
      out_ += std::string("# HELP sanproxy_") + name + " " + help + "\n# TYPE sanproxy_" + name +
              " " + type + "\n";
      last_ = name;
    }
    out_ += std::string("sanproxy_") + name + (labels.empty() ? "" : "{" + labels + "}") + " " +
            std::to_string(v) + "\n";
  }
  void counter(const char* name, const char* help, std::uint64_t v,
               const std::string& labels = "") {
    value(name, "counter", help, v, labels);
  }
  void gauge(const char* name, const char* help, std::uint64_t v, const std::string& labels = "") {
    value(name, "gauge", help, v, labels);
  }
  std::string take() { return std::move(out_); }

 private:
  std::string out_;
  std::string last_;
};

inline std::string label(const char* key, const std::string& value) {
  std::string out = std::string(key) + "=\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out + "\"";
}

}  // namespace sanproxy::daemon

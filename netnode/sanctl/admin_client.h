// AdminClient: requests to the admin endpoint of a node.
//
// Role: GET and POST by libcurl, with time-outs and bounded answers. Thread: any. Throws Failure.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "netnode/sanctl/options.h"

namespace sanproxy::sanctl {

// Who was meant is not there, as far as can be seen from here.
class NoAnswer : public Failure {
 public:
  using Failure::Failure;
};

// Nobody listens there, and the host itself says so: whatever else goes wrong may pass.
class ConnectionRefused : public NoAnswer {
 public:
  using NoAnswer::NoAnswer;
};

class AdminClient {
 public:
  explicit AdminClient(std::string address) : address_(std::move(address)) {}

  nlohmann::json get_json(const std::string& path) const;
  std::string get_text(const std::string& path) const;
  void post(const std::string& path) const;
  const std::string& address() const { return address_; }

 private:
  std::string address_;
};

// "/connections?client=...": with what is not safe in a query as %XX.
std::string with_query(const std::string& path, const std::map<std::string, std::string>& query);
// One segment of a path.
std::string encode_segment(const std::string& text);

// Samples of the Prometheus text format by "name" or "name{labels}"; what is malformed is left out.
std::map<std::string, double> parse_metrics(const std::string& text);
// The sum of all series of a metric whose labels contain `label`. Series of single workers are left
// out: a node with several tells their sum as well.
double sum_of_series(const std::map<std::string, double>& metrics, const std::string& name,
                     const std::string& label = "");

}  // namespace sanproxy::sanctl

// A strict reader of the Prometheus text exposition format 0.0.4.
#pragma once

#include <gtest/gtest.h>

#include <cctype>
#include <map>
#include <set>
#include <sstream>
#include <string>

namespace sanproxy::admin::testing {

using Labels = std::map<std::string, std::string>;

struct Metric {
  std::string type, help;
  std::map<Labels, double> samples;
  double at(const Labels& labels = {}) const {
    const auto it = samples.find(labels);
    if (it == samples.end()) {
      ADD_FAILURE() << "no such sample";
      return -1;
    }
    return it->second;
  }
  double sum() const {
    double out = 0;
    for (const auto& [labels, value] : samples) out += value;
    return out;
  }
};

class PrometheusText {
 public:
  explicit PrometheusText(const std::string& text) {
    EXPECT_FALSE(text.empty());
    EXPECT_EQ(text.back(), '\n') << "the last line must end";
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      if (line.rfind("# HELP ", 0) == 0) {
        help(line.substr(7));
      } else if (line.rfind("# TYPE ", 0) == 0) {
        type(line.substr(7));
      } else {
        sample(line);
      }
    }
    for (const auto& [name, metric] : metrics) {
      EXPECT_FALSE(metric.type.empty()) << name << " has no TYPE";
      EXPECT_FALSE(metric.samples.empty()) << name << " has no sample";
    }
  }

  std::map<std::string, Metric> metrics;

 private:
  static bool legal_name(const std::string& name) {
    if (name.empty() || std::isdigit(static_cast<unsigned char>(name[0])) != 0) return false;
    for (const char c : name) {
      if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '_') return false;
    }
    return true;
  }
  void help(const std::string& rest) {
    const std::size_t space = rest.find(' ');
    ASSERT_NE(space, std::string::npos) << rest;
    const std::string name = rest.substr(0, space);
    EXPECT_TRUE(legal_name(name)) << name;
    EXPECT_EQ(metrics.count(name), 0u) << "HELP twice, or not in front: " << name;
    metrics[name].help = rest.substr(space + 1);
    EXPECT_FALSE(metrics[name].help.empty()) << name;
    current_ = name;
  }
  void type(const std::string& rest) {
    const std::size_t space = rest.find(' ');
    ASSERT_NE(space, std::string::npos) << rest;
    const std::string name = rest.substr(0, space);
    EXPECT_EQ(name, current_) << "TYPE apart from its HELP";
    Metric& metric = metrics[name];
    EXPECT_TRUE(metric.type.empty()) << "TYPE twice: " << name;
    metric.type = rest.substr(space + 1);
    EXPECT_TRUE(metric.type == "counter" || metric.type == "gauge") << name << " " << metric.type;
    const bool total = name.size() > 6 && name.compare(name.size() - 6, 6, "_total") == 0;
    EXPECT_EQ(metric.type == "counter", total)
        << name << ": counters, and only they, end in _total";
  }
  void sample(const std::string& line) {
    std::size_t at = line.find_first_of("{ ");
    ASSERT_NE(at, std::string::npos) << "not a sample: " << line;
    const std::string name = line.substr(0, at);
    EXPECT_EQ(name, current_) << "a sample apart from its metric: " << line;
    Labels labels;
    if (line[at] == '{') read_labels(line, at, labels);
    ASSERT_LT(at, line.size()) << line;
    ASSERT_EQ(line[at], ' ') << line;
    std::size_t used = 0;
    const std::string number = line.substr(at + 1);
    const double value = std::stod(number, &used);
    EXPECT_EQ(used, number.size()) << line;
    EXPECT_TRUE(metrics[name].samples.emplace(labels, value).second) << "twice: " << line;
  }
  // From '{' to behind '}'.
  static void read_labels(const std::string& line, std::size_t& at, Labels& labels) {
    ++at;
    while (at < line.size() && line[at] != '}') {
      const std::size_t equals = line.find('=', at);
      ASSERT_NE(equals, std::string::npos) << line;
      const std::string key = line.substr(at, equals - at);
      EXPECT_TRUE(legal_name(key)) << line;
      ASSERT_EQ(line[equals + 1], '"') << line;
      std::string value;
      for (at = equals + 2; at < line.size() && line[at] != '"'; ++at) {
        if (line[at] == '\\') {
          ++at;
          ASSERT_TRUE(line[at] == '\\' || line[at] == '"' || line[at] == 'n') << line;
          value += line[at] == 'n' ? '\n' : line[at];
        } else {
          value += line[at];
        }
      }
      EXPECT_TRUE(labels.emplace(key, value).second) << "a label twice: " << line;
      ++at;
      if (at < line.size() && line[at] == ',') ++at;
    }
    ++at;
  }

  std::string current_;
};

}  // namespace sanproxy::admin::testing

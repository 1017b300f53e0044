#include "bench/tools/measurement.h"

#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

namespace sanproxy::bench {

std::uint64_t process_cpu_ns(pid_t pid) {
  std::uint64_t sum = 0;
  std::error_code error;
  const std::string folder = "/proc/" + std::to_string(pid) + "/task";
  for (const auto& task : std::filesystem::directory_iterator(folder, error)) {
    std::ifstream file(task.path() / "schedstat");
    std::uint64_t on_cpu_ns = 0;
    if (file >> on_cpu_ns) sum += on_cpu_ns;
  }
  return sum;
}

std::uint64_t monotonic_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U +
         static_cast<std::uint64_t>(now.tv_nsec);
}

std::vector<std::uint64_t> Measurement::sample() const {
  std::vector<std::uint64_t> out;
  out.reserve(watched_.size() + 1);
  for (const int pid : watched_) out.push_back(process_cpu_ns(pid));
  out.push_back(process_cpu_ns(getpid()));
  return out;
}

void Measurement::start() {
  cpu_start_ns_ = sample();
  start_ns_ = monotonic_ns();
}

void Measurement::stop() {
  stop_ns_ = monotonic_ns();
  cpu_stop_ns_ = sample();
}

double Measurement::seconds() const { return static_cast<double>(stop_ns_ - start_ns_) / 1e9; }

std::string Measurement::cpu_json() const {
  std::string out = "{";
  for (std::size_t i = 0; i < cpu_stop_ns_.size(); ++i) {
    const std::string name = i < watched_.size() ? std::to_string(watched_[i]) : "self";
    char value[64];
    std::snprintf(value, sizeof(value), "%s\"%s\": %.6f", i == 0 ? "" : ", ", name.c_str(),
                  static_cast<double>(cpu_stop_ns_[i] - cpu_start_ns_[i]) / 1e9);
    out += value;
  }
  return out + "}";
}

}  // namespace sanproxy::bench

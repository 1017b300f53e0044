#include "proxynode/main/worker_place.h"

#include <charconv>
#include <fstream>
#include <stdexcept>

namespace sanproxy::proxy {
namespace {

template <typename T>
T number(const std::string& text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw std::invalid_argument("not a worker's place");
  }
  return value;
}

}  // namespace

std::string WorkerPlace::to_text() const {
  std::string out = std::to_string(index) + "," + std::to_string(workers) + "," +
                    std::to_string(control_fd) + "," + std::to_string(steering_seed) + "," +
                    std::to_string(handover_in) + "," + std::to_string(again ? 1 : 0) + "," +
                    std::to_string(drains_fd);
  for (const int fd : handover_out) out += "," + std::to_string(fd);
  for (const int fd : queue_fds) out += "," + std::to_string(fd);
  return out;
}

WorkerPlace WorkerPlace::parse(const std::string& text) {
  constexpr std::size_t kFixed = 7;  // before the lists of descriptors
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == ',') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  if (parts.size() < kFixed) throw std::invalid_argument("not a worker's place");
  WorkerPlace out;
  out.index = number<std::uint32_t>(parts[0]);
  out.workers = number<std::uint32_t>(parts[1]);
  out.control_fd = number<int>(parts[2]);
  out.steering_seed = number<std::uint64_t>(parts[3]);
  out.handover_in = number<int>(parts[4]);
  out.again = number<int>(parts[5]) != 0;
  out.drains_fd = number<int>(parts[6]);
  if (out.workers > parts.size() - kFixed) throw std::invalid_argument("not a worker's place");
  for (std::size_t i = kFixed; i < parts.size(); ++i) {
    auto& list = i < kFixed + out.workers ? out.handover_out : out.queue_fds;
    list.push_back(number<int>(parts[i]));
  }
  return out;
}

std::unique_ptr<Handover> WorkerPlace::handover() const {
  std::vector<UniqueFd> out;
  for (const int fd : handover_out) out.emplace_back(fd);
  return std::make_unique<Handover>(packet_io::QueueSteering{workers, steering_seed}, index,
                                    UniqueFd(handover_in), std::move(out));
}

std::vector<std::string> WorkerPlace::drains() const {
  if (drains_fd < 0) return {};
  const UniqueFd fd(drains_fd);
  std::ifstream file("/proc/self/fd/" + std::to_string(fd.get()), std::ios::binary);
  std::vector<std::string> out;
  for (std::string one; std::getline(file, one, '\0');) out.push_back(one);
  return out;
}

}  // namespace sanproxy::proxy

#include "netnode/sanctl/admin_client.h"

#include <httplib.h>

#include <cctype>
#include <cstdlib>

#include "lwproto/base/socket_address.h"
#include "netnode/sanctl/options.h"

namespace sanproxy::sanctl {
namespace {

using nlohmann::json;

constexpr std::size_t kAnswerBytesMax = std::size_t{64} << 20;
constexpr int kTimeoutS = 5;

httplib::Client client_of(const std::string& address) {
  const auto parsed = SocketAddress::parse(address);
  if (!parsed.ok()) throw Failure("\"" + address + "\" is not IP:PORT", kExitUsage);
  httplib::Client client(parsed->ip.to_string(), parsed->port);
  client.set_connection_timeout(kTimeoutS);
  client.set_read_timeout(kTimeoutS);
  client.set_write_timeout(kTimeoutS);
  return client;
}

[[noreturn]] void unreachable(const std::string& address, httplib::Error error) {
  throw Failure("no answer from the admin endpoint " + address + " (" + httplib::to_string(error) +
                "): is the node running, and is that its [admin] listen?");
}

[[noreturn]] void refused(const std::string& address, const std::string& path, int status,
                          std::string why) {
  while (!why.empty() && why.back() == '\n') why.pop_back();
  throw Failure(
      address + path + ": " + (why.empty() ? "HTTP status " + std::to_string(status) : why),
      status == 400 ? kExitUsage : 1);
}

std::string percent_encode(const std::string& text, const char* also_safe) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) != 0 || std::string(also_safe).find(c) != std::string::npos) {
      out += c;
    } else {
      out += {'%', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return out;
}

}  // namespace

std::string AdminClient::get_text(const std::string& path) const {
  httplib::Client client = client_of(address_);
  std::string body;
  bool too_long = false;
  const auto result = client.Get(path.c_str(), [&](const char* data, std::size_t bytes) {
    too_long = body.size() + bytes > kAnswerBytesMax;
    if (!too_long) body.append(data, bytes);
    return !too_long;
  });
  if (too_long) throw Failure(address_ + path + ": the answer is longer than 64 MB");
  if (!result) unreachable(address_, result.error());
  if (result->status != 200 && !(path == "/healthz" && result->status == 503)) {
    refused(address_, path, result->status, body);
  }
  return body;
}

json AdminClient::get_json(const std::string& path) const {
  json out = json::parse(get_text(path), nullptr, false);
  if (!out.is_object()) throw Failure(address_ + path + ": the answer is not what it should be");
  return out;
}

void AdminClient::post(const std::string& path) const {
  httplib::Client client = client_of(address_);
  const auto result = client.Post(path.c_str(), "", "application/json");
  if (!result) unreachable(address_, result.error());
  if (result->status != 200) refused(address_, path, result->status, result->body);
}

std::string with_query(const std::string& path, const std::map<std::string, std::string>& query) {
  std::string out = path;
  for (const auto& [name, value] : query) {
    out += (out.size() == path.size() ? "?" : "&") + name + "=" + percent_encode(value, "-._~");
  }
  return out;
}

std::string encode_segment(const std::string& text) { return percent_encode(text, "-._~:"); }

std::map<std::string, double> parse_metrics(const std::string& text) {
  std::map<std::string, double> out;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    const std::size_t space = line.rfind(' ');
    if (line.empty() || line[0] == '#' || space == std::string::npos) continue;
    char* stop = nullptr;
    const double value = std::strtod(line.c_str() + space + 1, &stop);
    if (*stop == '\0') out[line.substr(0, space)] = value;
  }
  return out;
}

double sum_of_series(const std::map<std::string, double>& metrics, const std::string& name,
                     const std::string& label) {
  double out = 0;
  for (auto it = metrics.lower_bound(name); it != metrics.end() && it->first.starts_with(name);
       ++it) {
    const std::string rest = it->first.substr(name.size());
    if (!rest.empty() && rest[0] != '{') continue;
    if (rest.find("worker=\"") != std::string::npos) continue;
    if (rest.find(label) != std::string::npos) out += it->second;
  }
  return out;
}

}  // namespace sanproxy::sanctl

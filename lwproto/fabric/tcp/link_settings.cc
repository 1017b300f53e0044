#include "lwproto/fabric/tcp/link_settings.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>

#include "lwproto/base/unique_fd.h"

namespace sanproxy::fabric::tcp {
namespace {

constexpr std::uint64_t kWindowShareMin = 16 * 1024;
// The kernel sends at most this in one go, whatever the pacing rate.
constexpr std::uint64_t kKernelBurstBytes = 64 * 1024;
// Where the owner chooses nothing else: "filler" traffic, and the lower-effort code point (RFC
// 8622).
constexpr int kLowestPriority = 1;
constexpr int kLowestDscp = 1;

constexpr std::uint32_t kHonoured = kLinkWindow | kLinkStreams | kLinkCongestion | kLinkQuality |
                                    kLinkRate | kLinkPeak | kLinkBurst | kLinkSkipSlowStart |
                                    kLinkDscp | kLinkPriority;

struct RefusedText {
  LinkField field;
  const char* text;
};
constexpr RefusedText kRefusedTexts[] = {
    {kLinkWindow, "link parameter window: the other end cannot honour it"},
    {kLinkStreams, "link parameter streams: the other end cannot honour it"},
    {kLinkQueuePairs, "link parameter queue_pairs: the other end cannot honour it"},
    {kLinkSkipSlowStart, "link parameter skip_slow_start: the other end cannot honour it"},
    {kLinkCongestion, "link parameter congestion: the other end cannot honour it"},
    {kLinkQuality, "link parameter quality: the other end cannot honour it"},
    {kLinkRate, "link parameter rate: the other end cannot honour it"},
    {kLinkPeak, "link parameter peak: the other end cannot honour it"},
    {kLinkBurst, "link parameter burst: the other end cannot honour it"},
    {kLinkDscp, "link parameter dscp: the other end cannot honour it"},
    {kLinkPriority, "link parameter priority: the other end cannot honour it"},
    {kLinkServiceLevel, "link parameter service_level: the other end cannot honour it"},
    {kLinkTrafficClass, "link parameter traffic_class: the other end cannot honour it"},
};

LinkVerdict refuse(LinkField field, const char* text) {
  return {field, Status::error(Code::kUnsupported, text)};
}

template <typename T>
bool set(int fd, int level, int option, T value) {
  return ::setsockopt(fd, level, option, &value, sizeof(value)) == 0;
}
template <typename T>
T get(int fd, int level, int option, T otherwise) {
  T value{};
  socklen_t length = sizeof(value);
  return ::getsockopt(fd, level, option, &value, &length) == 0 ? value : otherwise;
}

bool set_congestion(int fd, const LinkParameters& link) {
  const std::size_t length = ::strnlen(link.congestion.data(), link.congestion.size());
  return ::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, link.congestion.data(),
                      static_cast<socklen_t>(length)) == 0;
}

// The kernel doubles the size of a buffer for its own needs, and cuts it without an error.
bool set_buffer(int fd, int forced, int plain, int bytes) {
  if (!set(fd, SOL_SOCKET, forced, bytes) && !set(fd, SOL_SOCKET, plain, bytes)) return false;
  return get(fd, SOL_SOCKET, plain, 0) / 2 >= bytes;
}

int dscp_of(const LinkParameters& link) {
  if (link.dscp >= 0) return link.dscp;
  return link.quality == QualityClass::kUnspecified ? kLowestDscp : -1;
}
int priority_of(const LinkParameters& link) {
  if (link.priority >= 0) return link.priority;
  return link.quality == QualityClass::kUnspecified ? kLowestPriority : -1;
}
// What the kernel paces at; the mean rate of kVariable is kept by the send queue.
std::uint64_t paced_rate(const LinkParameters& link) {
  return link.quality == QualityClass::kVariable ? link.peak_bytes_per_s : link.rate_bytes_per_s;
}

}  // namespace

Status refused_by_peer(std::uint32_t field) {
  for (const RefusedText& refused : kRefusedTexts) {
    if (refused.field == field) return Status::error(Code::kRefused, refused.text);
  }
  return Status::error(Code::kRefused, "the other end does not take these link parameters");
}

LinkVerdict judge_link(const LinkParameters& link, std::uint32_t streams,
                       const LinkLimits& limits) {
  if (link.quality > QualityClass::kUnspecified) {
    return refuse(kLinkQuality, "link parameter quality: no such class");
  }
  if (streams == 0 || streams > std::min(limits.streams_max, kTcpStreamsMax)) {
    return refuse(kLinkStreams, "link parameter streams: more than this end takes");
  }
  if (Status possible = check_link(link); !possible.ok()) return {0, possible};
  if (Status known = require_link(link, kHonoured); !known.ok()) {
    const std::uint32_t refused = link_fields(link) & ~kHonoured;
    return {refused & (~refused + 1), known};  // the lowest, which is the one in the text
  }
  if (link.skip_slow_start && link.window_bytes == 0) {
    return refuse(kLinkSkipSlowStart, "link parameter skip_slow_start: needs a window");
  }
  if (link.window_bytes > limits.window_bytes_max) {
    return refuse(kLinkWindow, "link parameter window: more than this end takes");
  }
  if (link.window_bytes != 0 && link.window_bytes / streams < kWindowShareMin) {
    return refuse(kLinkWindow, "link parameter window: less than 16KiB for each stream");
  }
  // Of cbr each stream is paced by itself; of vbr one bucket stands before them all.
  const bool apart = link.quality == QualityClass::kConstant;
  if (link.burst_bytes != 0 && link.burst_bytes < kKernelBurstBytes * (apart ? streams : 1)) {
    return refuse(kLinkBurst, apart
                                  ? "link parameter burst: of each stream the kernel sends up to "
                                    "64KiB in one go"
                                  : "link parameter burst: the kernel sends up to 64KiB in one go");
  }
  return {};
}

namespace {

// Whether the congestion window outlives a pause, so that opening it once is enough.
bool keeps_its_window(int fd) {
  const auto name = get(fd, IPPROTO_TCP, TCP_CONGESTION, std::array<char, 16>{});
  if (std::strncmp(name.data(), "bbr", name.size()) == 0) return true;
  const UniqueFd setting(
      ::open("/proc/sys/net/ipv4/tcp_slow_start_after_idle", O_RDONLY | O_CLOEXEC));
  char value = '1';
  return setting.valid() && ::read(setting.get(), &value, 1) == 1 && value == '0';
}

bool is_loaded(const LinkParameters& link) {
  const UniqueFd list(
      ::open("/proc/sys/net/ipv4/tcp_available_congestion_control", O_RDONLY | O_CLOEXEC));
  std::array<char, 1024> text{};
  const ssize_t length = list.valid() ? ::read(list.get(), text.data(), text.size()) : 0;
  std::string_view names(text.data(), static_cast<std::size_t>(std::max<ssize_t>(length, 0)));
  const std::string_view wanted(link.congestion.data(),
                                ::strnlen(link.congestion.data(), link.congestion.size()));
  while (!names.empty()) {
    const std::size_t end = std::min(names.find_first_of(" \n"), names.size());
    if (names.substr(0, end) == wanted) return true;
    names.remove_prefix(std::min(end + 1, names.size()));
  }
  return false;
}

// A connection says once how its window is scaled, in its SYN.
std::uint64_t widest_window(int fd) {
  const auto info = get(fd, IPPROTO_TCP, TCP_INFO, tcp_info{});
  const unsigned scale = (info.tcpi_options & TCPI_OPT_WSCALE) != 0 ? info.tcpi_rcv_wscale : 0;
  return std::uint64_t{65'535} << scale;
}

}  // namespace

LinkVerdict apply_link(int fd, Family family, const LinkParameters& link, std::uint32_t streams) {
  if (link.congestion[0] != '\0' && !set_congestion(fd, link)) {
    return refuse(kLinkCongestion,
                  "link parameter congestion: the kernel has no such algorithm for us");
  }
  if (link.skip_slow_start && !keeps_its_window(fd)) {
    return refuse(kLinkSkipSlowStart,
                  "link parameter skip_slow_start: needs congestion=bbr, or "
                  "net.ipv4.tcp_slow_start_after_idle = 0");
  }
  if (link.window_bytes != 0) {
    const auto share = static_cast<int>(link.window_bytes / streams);
    if (!set_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, share) ||
        !set_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF, share)) {
      return refuse(kLinkWindow,
                    "link parameter window: above net.core.wmem_max or rmem_max for each stream");
    }
    if (!set(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, share)) {
      return refuse(kLinkWindow, "link parameter window: the kernel does not take it");
    }
  }
  if (const std::uint64_t rate = paced_rate(link); rate != 0) {
    const std::uint64_t share = std::max<std::uint64_t>(rate / streams, 1);
    if (!set(fd, SOL_SOCKET, SO_MAX_PACING_RATE, share) ||
        get<std::uint64_t>(fd, SOL_SOCKET, SO_MAX_PACING_RATE, 0) != share) {
      return refuse(kLinkRate, "link parameter rate: the kernel does not take it");
    }
  }
  if (const int dscp = dscp_of(link); dscp >= 0) {
    const int level = family == Family::kIpv6 ? IPPROTO_IPV6 : IPPROTO_IP;
    const int option = family == Family::kIpv6 ? IPV6_TCLASS : IP_TOS;
    if (!set(fd, level, option, dscp << 2) || get(fd, level, option, -1) >> 2 != dscp) {
      return refuse(kLinkDscp, "link parameter dscp: the kernel does not take it");
    }
  }
  // After the DSCP, which sets a priority of its own.
  if (const int priority = priority_of(link); priority >= 0) {
    if (!set(fd, SOL_SOCKET, SO_PRIORITY, priority) ||
        get(fd, SOL_SOCKET, SO_PRIORITY, -1) != priority) {
      return refuse(kLinkPriority, "link parameter priority: the kernel does not take it");
    }
  }
  return {};
}

LinkVerdict apply_to_accepted(int fd, Family family, const LinkParameters& link,
                              std::uint32_t streams) {
  // Asked for another, the kernel would load a module of that name.
  if (link.congestion[0] != '\0' && !is_loaded(link)) {
    return refuse(kLinkCongestion,
                  "link parameter congestion: not in net.ipv4.tcp_available_congestion_control");
  }
  if (LinkVerdict applied = apply_link(fd, family, link, streams); !applied.ok()) return applied;
  if (link.window_bytes != 0 && link.window_bytes / streams > widest_window(fd)) {
    return refuse(kLinkWindow,
                  "link parameter window: more than net.ipv4.tcp_rmem lets a peer be told of");
  }
  return {};
}

LinkParameters read_back_link(int fd, Family family, LinkParameters link, std::uint32_t streams) {
  link.parallel_streams = streams;
  link.congestion = get(fd, IPPROTO_TCP, TCP_CONGESTION, std::array<char, 16>{});
  link.congestion.back() = '\0';
  if (link.window_bytes != 0) {
    const int bytes =
        std::min(get(fd, SOL_SOCKET, SO_SNDBUF, 0), get(fd, SOL_SOCKET, SO_RCVBUF, 0));
    link.window_bytes = std::uint64_t{streams} * static_cast<unsigned>(bytes / 2);
  }
  const int level = family == Family::kIpv6 ? IPPROTO_IPV6 : IPPROTO_IP;
  const int option = family == Family::kIpv6 ? IPV6_TCLASS : IP_TOS;
  if (const int tos = get(fd, level, option, -1); tos >= 0) {
    link.dscp = static_cast<std::int8_t>(tos >> 2);
  }
  if (const int priority = get(fd, SOL_SOCKET, SO_PRIORITY, -1); priority >= 0) {
    link.priority = static_cast<std::int8_t>(std::min(priority, 127));
  }
  return link;
}

}  // namespace sanproxy::fabric::tcp

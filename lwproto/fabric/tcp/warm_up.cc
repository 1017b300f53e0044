#include "lwproto/fabric/tcp/warm_up.h"

#include <linux/inet_diag.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <span>

namespace sanproxy::fabric::tcp {
namespace {

const std::array<std::byte, kPaddingBytes> kPadding = {};

// What BBR multiplies its estimate with while it looks for the bandwidth: 2/ln(2), in 1/256.
constexpr std::uint32_t kBbrStartupGain = 739;

tcp_info info_of(int fd) {
  tcp_info info{};
  socklen_t length = sizeof(info);
  ::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length);
  return info;
}

// BBR keeps its window at twice what the path holds, and that may be less than was asked for.
bool bbr_has_found_the_bandwidth(int fd) {
  std::array<char, 16> name{};
  socklen_t length = sizeof(name);
  if (::getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name.data(), &length) != 0 ||
      std::strncmp(name.data(), "bbr", name.size()) != 0) {
    return false;
  }
  tcp_bbr_info bbr{};
  length = sizeof(bbr);
  return ::getsockopt(fd, IPPROTO_TCP, TCP_CC_INFO, &bbr, &length) == 0 && length >= sizeof(bbr) &&
         bbr.bbr_pacing_gain != 0 && bbr.bbr_pacing_gain < kBbrStartupGain;
}

}  // namespace

bool WarmUp::open(int fd) const {
  const tcp_info info = info_of(fd);
  return std::uint64_t{info.tcpi_snd_cwnd} * info.tcpi_snd_mss >= window_bytes_ ||
         (padded_ >= window_bytes_ && bbr_has_found_the_bandwidth(fd));
}

IoState WarmUp::finish(Transport& transport) {
  while (frame_done_ != frame_bytes_) {
    std::array<iovec, 2> pieces;
    std::size_t count = 0;
    if (frame_done_ < sizeof(header_)) {
      pieces[count++] = {reinterpret_cast<std::byte*>(&header_) + frame_done_,
                         sizeof(header_) - frame_done_};
    }
    const std::size_t rest = frame_bytes_ - std::max(frame_done_, sizeof(header_));
    // Not written through.
    if (rest != 0) pieces[count++] = {const_cast<std::byte*>(kPadding.data()), rest};
    const Io io = transport.write(std::span(pieces).first(count));
    frame_done_ += io.bytes;
    if (io.state != IoState::kMore) return io.state;
  }
  return IoState::kMore;
}

IoState WarmUp::advance(Transport& transport) {
  while (under_way()) {
    if (const IoState state = finish(transport); state != IoState::kMore) return state;
    if (state_ == State::kLast) {
      state_ = State::kWarm;
      break;
    }
    frame_done_ = 0;
    if (open(transport.fd())) {
      header_ = FrameHeader::make(FrameKind::kWarm, 0, 0, 0);
      frame_bytes_ = sizeof(header_);
      state_ = State::kLast;
    } else if (padded_ < kPaddingFactor * window_bytes_) {
      header_ = FrameHeader::make(FrameKind::kPadding, 0, kPaddingBytes, 0);
      frame_bytes_ = sizeof(header_) + kPaddingBytes;
      padded_ += frame_bytes_;
    } else {
      frame_bytes_ = 0;
      const tcp_info info = info_of(transport.fd());
      if (info.tcpi_unacked != 0 || info.tcpi_notsent_bytes != 0) return IoState::kMore;
      state_ = State::kCold;
    }
  }
  return IoState::kMore;
}

}  // namespace sanproxy::fabric::tcp

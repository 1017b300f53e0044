// The congestion window: slow start by all that is acknowledged, CUBIC (RFC 9438) beyond it, where
// lwIP would grow by a segment a round trip, which takes minutes on long paths.
#include <cmath>

#include "proxynode/stack/stack_impl.h"

namespace sanproxy::stack {
namespace {

constexpr double kCubic = 0.4;                   // C, in segments a second cubed
constexpr double kDecrease = 0.7;                // beta
constexpr double kRenoFriendly = 3 * 0.3 / 1.7;  // alpha: as fast as Reno with its half
constexpr double kTargetMax = 1.5;               // of the window, in a round trip

}  // namespace

// Something of a flight was lost: the window that it had is where growth will be slow.
void Stack::Impl::on_loss(Connection& conn, std::uint32_t flight_bytes) {
  tcp_pcb& pcb = *conn.pcb;
  const bool gives_way = flight_bytes < conn.loss_window_bytes;  // "fast convergence"
  conn.loss_window_bytes =
      gives_way ? static_cast<std::uint32_t>(flight_bytes * (1 + kDecrease) / 2) : flight_bytes;
  conn.cubic_start_ms = 0;
  pcb.ssthresh = std::max(static_cast<tcpwnd_size_t>(flight_bytes * kDecrease),
                          tcpwnd_size_t{2} * conn.mss_bytes);
}

// RFC 5681 4.1: what a path took before a pause says little of what it takes now.
void Stack::Impl::restart_if_idle(Connection& conn) {
  tcp_pcb& pcb = *conn.pcb;
  if (conn.in_timers || pcb.unsent != nullptr) return;
  const std::uint32_t idle_ticks =
      static_cast<std::uint32_t>(now_ns / kFastTickNs) - conn.timer_stamp;
  if (idle_ticks <= static_cast<std::uint32_t>(pcb.rto) * (kSlowTickMs * 1'000'000 / kFastTickNs))
    return;
  pcb.cwnd = std::min<tcpwnd_size_t>(pcb.cwnd, kInitialWindowSegments * conn.mss_bytes);
  conn.cubic_start_ms = 0;
}

void Stack::Impl::begin_cubic(Connection& conn, std::uint32_t cwnd, std::uint32_t now_ms) {
  conn.cubic_start_ms = std::max(now_ms, 1u);
  conn.reno_window_bytes = cwnd;
  conn.loss_window_bytes = std::max(conn.loss_window_bytes, cwnd);
  const double segments = static_cast<double>(conn.loss_window_bytes - cwnd) / conn.mss_bytes;
  conn.cubic_flat_ms = static_cast<std::uint32_t>(std::cbrt(segments / kCubic) * 1000);
}

// After an acknowledgement of `acked` bytes. `cwnd`, `flight`: before it.
void Stack::Impl::grow_window(Connection& conn, std::uint32_t cwnd, std::uint32_t flight,
                              std::uint32_t acked) {
  tcp_pcb& pcb = *conn.pcb;
  if (flight < cwnd / 2) {  // it was not the window that was in the way
    pcb.cwnd = cwnd;
    conn.cubic_start_ms = 0;
    return;
  }
  if (cwnd < pcb.ssthresh) {
    // RFC 3465 with L unbounded: one acknowledgement of a super-segment stands for many.
    pcb.cwnd = std::max(pcb.cwnd, cwnd + acked);
    return;
  }
  pcb.cwnd = cwnd;
  pcb.bytes_acked = 0;
  const auto now_ms = static_cast<std::uint32_t>(now_ns / 1'000'000);
  if (conn.cubic_start_ms == 0) begin_cubic(conn, cwnd, now_ms);
  const double mss = conn.mss_bytes;
  const double round_trip_ms = static_cast<double>(pcb.sa >> 3) * kSlowTickMs;
  const double seconds = (now_ms - conn.cubic_start_ms + round_trip_ms - conn.cubic_flat_ms) / 1000;
  const double cubic = conn.loss_window_bytes + kCubic * seconds * seconds * seconds * mss;
  const double alpha = conn.reno_window_bytes < conn.loss_window_bytes ? kRenoFriendly : 1;
  const double part = static_cast<double>(acked) / cwnd;
  const double reno = conn.reno_window_bytes + alpha * part * mss;
  conn.reno_window_bytes = static_cast<std::uint32_t>(std::min(reno, 1e9));
  const double target = std::clamp(std::max(cubic, reno), 1.0 * cwnd, kTargetMax * cwnd);
  pcb.cwnd += static_cast<tcpwnd_size_t>((target - cwnd) * std::min(part, 1.0));
}

}  // namespace sanproxy::stack

// Link: the proxy asks whether we live, and says for how long it may be silent itself
// (docs/wire_format.md "HEARTBEAT").
#include "appnode-lib/client/convert.h"
#include "appnode-lib/client/link.h"
#include "appnode-lib/client/node_impl.h"

namespace sanproxy::app::internal {
namespace {

// Of the silence that a proxy allows itself: how often we look.
constexpr std::uint64_t kLooksPerSilence = 4;

}  // namespace

void Link::on_heartbeat(const wire::HeartbeatBody& body) {
  if (heartbeat_owed_) return breach("a HEARTBEAT before the last one was answered");
  constexpr std::uint64_t kNsPerMs = 1'000'000;
  silence_ns_ = body.silence_ms * kNsPerMs;
  if ((silence_ns_ != 0) != (look_at_ns_ != 0)) {
    node_.links_waiting(silence_ns_ != 0 ? 1 : -1);
    heard_ns_ = node_.now_ns();
    look_at_ns_ = silence_ns_ != 0 ? heard_ns_ + silence_ns_ / kLooksPerSilence : 0;
  }
  heartbeat_ = body.number;
  heartbeat_owed_ = true;
  answer_heartbeat();
}

void Link::answer_heartbeat() {
  if (!heartbeat_owed_) return;
  const BaseStatus status =
      hold_->channel->send_control(wire::MessageType::kHeartbeat, wire::kFlagAnswer,
                                   wire::CloseCode::kNone, wire::HeartbeatBody{heartbeat_, 0});
  heartbeat_owed_ = status.is_again();  // else on_writable() comes back here
}

// Behind poll(): what has waited for us while we did something else was heard now.
void Link::look_for_silence(std::uint64_t now_ns) {
  if (look_at_ns_ == 0 || now_ns < look_at_ns_) return;
  look_at_ns_ = now_ns + silence_ns_ / kLooksPerSilence;
  const std::uint64_t transfers = hold_->channel->counters().transfers_in;
  if (transfers != heard_transfers_) {
    heard_transfers_ = transfers;
    heard_ns_ = now_ns;
  } else if (now_ns - heard_ns_ >= silence_ns_) {
    our_reason_ = "nothing was heard of the proxy";
    hold_->channel->close(wire::CloseCode::kTimedOut, our_reason_);
  }
}

void Link::forget_heartbeats() {
  if (look_at_ns_ != 0) node_.links_waiting(-1);
  silence_ns_ = heard_transfers_ = look_at_ns_ = 0;
  heartbeat_owed_ = false;
}

}  // namespace sanproxy::app::internal

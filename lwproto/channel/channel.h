// Channel: messages over one fabric endpoint, with the credit ledger applied.
//
// Documents: docs/wire_format.md, docs/flow_control.md.
// Role: packs outgoing messages into transfers, spends and grants credits, checks and hands up
//   incoming messages. Used alike by the proxy's translation and by the application library. It
//   knows nothing of streams beyond their ids: windows and offsets belong to its delegate.
// Owner: one; thread: that of its fabric. Fabric-independent: never assumes shared memory.
// Invariants:
//   1. No transfer leaves without a credit; data leaves the control reserve untouched.
//   2. A send_*() that returns kAgain has sent nothing and changed nothing; on_writable() follows
//      once that can change. There is no queue of messages in here: the delegate keeps the state
//      from which a message can be made later, so memory is bounded by what it counts anyway.
//   3. The delegate is never called from inside a send_*() or flush(): only from poll().
//   4. A peer's breach ends the channel: an ERROR message with the code is sent if it can be,
//      the endpoint is disconnected, and on_closed() follows from poll(). Exactly once.
//   5. Payload given by reference stays the fabric's until on_sent(cookie), which comes for every
//      cookie, also on disconnection. What the fabric has not refused is what bounds the cookies.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lwproto/base/status.h"
#include "lwproto/fabric/fabric.h"
#include "lwproto/flow/credit_ledger.h"
#include "lwproto/wire/codec.h"

namespace sanproxy::channel {

class Channel;

// The payload of one DATA message, while on_data() runs.
struct Payload {
  std::span<const fabric::Segment> pieces;  // never empty, no piece is empty
  std::uint32_t length = 0;
  // kNoLoan: the bytes are valid only until on_data() returns (always so for small payloads).
  // Else they stay valid until Channel::release(loan), if the delegate called
  // Channel::retain(loan) during on_data(). No two payloads share a loan.
  fabric::Loan loan = fabric::kNoLoan;
};

// What a PACKET says of the packet in its payload.
struct PacketInfo {
  std::uint8_t flags = 0;  // wire::kFlagChecksumPartial, ...
  wire::PacketBody body = {};
  bool can_wait = false;  // sending: like bulk data, see publish()
};

class Delegate {
 public:
  virtual ~Delegate() = default;
  virtual void on_data(Channel& channel, std::uint64_t connection, std::uint64_t offset,
                       const Payload& payload) = 0;
  // A PACKET: as on_data(), but small packets may be retained as well, and all packets of one
  // transfer share a loan then: retain() and release() it once. On a channel that is not for
  // packets it is a breach.
  virtual void on_packet(Channel& channel, const PacketInfo& info, const Payload& payload);
  // Every message but DATA, PACKET, HELLO and ERROR; `message.payload` is valid during the call.
  virtual void on_message(Channel& channel, const wire::Message& message) = 0;
  // The referenced payload sent with `cookie` is ours again; !ok when the peer may not have got
  // it (disconnection).
  virtual void on_sent(Channel& channel, std::uint64_t cookie, bool ok) = 0;
  // After a kAgain: credits or queue space have come back.
  virtual void on_writable(Channel& channel) = 0;
  // The channel has ended; `code` is the peer's ERROR code, kNodeDied when it vanished, or our own
  // reason. No send works any more. Do not destroy the channel inside the call.
  virtual void on_closed(Channel& channel, wire::CloseCode code, const Status& status) = 0;
};

struct ChannelCounters {
  std::uint64_t transfers_out = 0, transfers_in = 0;
  std::uint64_t messages_out = 0, messages_in = 0;
  std::uint64_t data_bytes_out = 0, data_bytes_in = 0;
  std::uint64_t inline_bytes_out = 0, inline_bytes_in = 0;  // of the data bytes, those copied
  std::uint64_t blocked_no_credit = 0, blocked_no_space = 0;
};

class Channel {
 public:
  // `ours` and `peers` are the HELLOs that were exchanged when the endpoint was connected.
  Channel(std::unique_ptr<fabric::Endpoint> endpoint, const wire::HelloBody& ours,
          const wire::HelloBody& peers, Delegate& delegate);
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  // --- sending; each returns ok, kAgain (see invariant 2) or kDisconnected.
  template <typename Body>
  Status send_control(wire::MessageType type, std::uint8_t flags, wire::CloseCode code,
                      const Body& body) {
    return send_message(type, flags, code, &body, sizeof(body), {}, Claim::kControl);
  }
  // CONNECTION_REQUEST and FIN may not use the control reserve: they come in the number of the
  // connections.
  template <typename Body>
  Status send_stream_control(wire::MessageType type, std::uint8_t flags, wire::CloseCode code,
                             const Body& body) {
    return send_message(type, flags, code, &body, sizeof(body), {}, Claim::kData);
  }
  // Half of the control reserve is open to CREDITs: data may wait for one while nothing but one can
  // free the peer's receive buffers. After kAgain on_writable() comes as soon as one can be sent,
  // also when data cannot (see data_writable()).
  Status send_credit(const wire::CreditBody& body) {
    return send_message(wire::MessageType::kCredit, 0, wire::CloseCode::kNone, &body, sizeof(body),
                        {}, Claim::kCredit);
  }
  // send_control() or send_stream_control(), for a body kept as bytes.
  Status send_bytes(wire::MessageType type, std::uint8_t flags, wire::CloseCode code,
                    std::span<const std::byte> body, bool control) {
    return send_message(type, flags, code, body.data(), body.size(), {},
                        control ? Claim::kControl : Claim::kData);
  }
  // At most wire::kInlinePayloadBytesMax bytes, copied into the transfer.
  Status send_data_inline(std::uint64_t connection, std::uint64_t offset,
                          std::span<const std::byte> payload);
  // Sum of `refs` at most wire::kDataPayloadBytesMax and above kInlinePayloadBytesMax.
  // `more`: the next message is likely to continue this stream where this one ends, and becomes one
  // DATA with it then, as far as the references of a transfer go; else this one goes with the next
  // flush() or publish() as it is.
  Status send_data_reference(std::uint64_t connection, std::uint64_t offset,
                             std::span<const fabric::GatherRef> refs, std::uint64_t cookie,
                             bool more = false);
  // PACKETs: packet.size() wire::kPacketBytesMin..kInlinePayloadBytesMax bytes are copied into the
  // transfer; above that the sum of `refs` is at most wire::kPacketBytesMax.
  Status send_packet_inline(const PacketInfo& info, std::span<const std::byte> packet);
  Status send_packet_reference(const PacketInfo& info, std::span<const fabric::GatherRef> refs,
                               std::uint64_t cookie);
  // Completes the open transfer and publishes everything. Cheap when there is nothing.
  void flush();
  // Likewise, for a loop that comes here every round and arms its fabric before it sleeps: when
  // only bulk data, CREDITs and returns have gathered, a sleeping peer is woken after a few calls
  // or when the loop sleeps, not at once. A wake-up costs both sides more than a message.
  void publish();
  // For a side whose messages are made faster than the peer works them off: a peer that sleeps is
  // woken as soon as a few have gathered, and wakes while the rest is being made.
  void wake_early() { wake_early_ = true; }
  // on_writable() will follow as if a send had returned kAgain: for a delegate that has senders in
  // waiting and serves them in turn.
  void ask_writable() { blocked_ = true; }
  // Places in the fabric's send queue that are left for DATA by reference. The one that waits for
  // others to join it has taken its place.
  std::uint32_t places_left() const {
    const std::uint32_t left = endpoint_->references_left();
    return left - (joining_ && left != 0 ? 1 : 0);
  }
  // DATA by reference that could be sent before the peer posts or lets go of anything.
  std::uint32_t references_left() const;
  // Likewise, of what those may share who have some in flight (Endpoint::references_spare()).
  std::uint32_t references_spare() const;
  bool data_writable() const { return !closed_ && !blocked_ && ledger_.may_send_data(); }

  // --- receiving: handles up to `budget` completions; returns how many there were.
  std::size_t poll(std::size_t budget = 256);
  // Posts what has become free since poll(), and grants it if that is due: behind the release of a
  // loan, also of another channel's that receives into the same memory. As poll() does.
  void replenish() {
    if (!closed_) look_after_credits();
  }
  void retain(fabric::Loan loan);   // only inside on_data() or on_packet()
  void release(fabric::Loan loan);  // of a loan that was retained

  // Ends the channel by our decision (sends ERROR code, text). on_closed() follows from poll().
  void close(wire::CloseCode code, const char* text);
  bool closed() const { return closed_; }
  // For a side that has passed on what its peer lent it: when the channel ends by our decision the
  // delegate is told as always, and the peer, which takes its memory back then, only by
  // finish_end(). The last on_sent() come there too, behind on_closed(). Destruction finishes the
  // end without an ERROR.
  void hold_end() { hold_end_ = true; }
  bool end_held() const { return end_held_; }
  void finish_end();

  fabric::Endpoint& endpoint() { return *endpoint_; }
  const wire::HelloBody& our_hello() const { return ours_; }
  const wire::HelloBody& peer_hello() const { return peers_; }
  std::string peer_name() const;  // node name from HELLO
  const ChannelCounters& counters() const { return counters_; }
  const flow::CreditLedger& ledger() const { return ledger_; }
  void* user = nullptr;  // the delegate's own

 private:
  static constexpr std::size_t kPollBatch = 32;
  static constexpr std::uint32_t kEarlyMessages = 8;
  // A pure credit return is also due after this many received bytes, so that a peer whose send
  // queue is short of space rather than of credits is woken as well (docs/flow_control.md).
  static constexpr std::uint32_t kReturnAfterBytes = 64 * 1024;

  // Which of the peer's last credits a message may use (flow::CreditLedger).
  enum class Claim : std::uint8_t { kData, kCredit, kControl };

  Status send_message(wire::MessageType type, std::uint8_t flags, wire::CloseCode code,
                      const void* body, std::size_t body_bytes, std::span<const std::byte> tail,
                      Claim claim);
  // A DATA by reference that later ones may still join; its transfer is open_.
  struct Joinable {
    std::uint64_t connection = 0, offset = 0;
    std::uint32_t bytes = 0, ref_count = 0, first_cookie = 0, last_cookie = 0;
    std::array<fabric::GatherRef, fabric::kGatherRefsMax> refs;
  };
  // The cookies of one transfer are a chain: the fabric's cookie is the index of the first.
  struct Cookie {
    std::uint64_t value = 0;
    std::uint32_t next = 0;
  };
  static constexpr std::uint32_t kNoCookie = 0xffff'ffff;

  // There is nothing to do but for what comes in.
  bool at_ease() const {
    return !closed_ && !blocked_ && received_since_grant_ < kReturnAfterBytes &&
           ledger_.peer_is_well_off();
  }
  std::size_t handle_all(std::size_t budget, std::size_t count);
  bool handle(std::size_t count);
  void look_after_credits();
  void wake_early_when_due();
  bool may_send(Claim claim) const;
  Status open_transfer(std::size_t bytes, Claim claim);
  Status finish_open();
  bool join(std::uint64_t connection, std::uint64_t offset, std::span<const fabric::GatherRef> refs,
            std::size_t bytes, std::uint64_t cookie);
  Status finish_referenced(std::span<const fabric::GatherRef> refs, std::uint32_t first_cookie);
  std::uint32_t take_cookie(std::uint64_t value);
  void tell_sent(std::uint32_t first_cookie, bool ok);
  void tell_unsent();
  enum class Then : std::uint8_t { kMore, kFlush };
  Status finish_transfer(std::span<const fabric::GatherRef> refs, std::uint64_t cookie,
                         Then then = Then::kMore);
  Status blocked(Claim claim, std::uint64_t& counter);
  std::uint32_t data_credits() const {  // left above the reserve
    const std::uint32_t left = ledger_.available();
    return left - std::min(left, peers_.credits_reserved);
  }
  void on_transfer(const fabric::Completion& completion);
  Status count_in(const wire::TransferHeader& header);
  void on_one_data(const wire::OneData& one, bool transient);
  void on_messages(const fabric::Completion& completion);
  Status dispatch(wire::TransferReader& reader, const fabric::Completion& completion);
  void dispatch_data(const wire::Message& message, const fabric::Completion& completion);
  void dispatch_packet(const wire::Message& message, const fabric::Completion& completion);
  void return_credits();  // when they are due
  void breach(const Status& status);
  void tell_end();
  void finish_close(const Status& status);

  std::unique_ptr<fabric::Endpoint> endpoint_;
  wire::HelloBody ours_;
  wire::HelloBody peers_;
  Delegate& delegate_;
  flow::CreditLedger ledger_;
  wire::TransferWriter writer_;
  bool open_ = false;     // writer_ holds space of a transfer not yet committed
  bool joining_ = false;  // and joinable_ is the end of it
  Joinable joinable_;
  std::vector<Cookie> cookies_;  // grows to the most references that were ever under way
  std::uint32_t cookies_free_ = kNoCookie;
  std::uint32_t unsent_ = kNoCookie;  // of a transfer that the fabric did not take: its end is near
  bool blocked_ = false;              // somebody got kAgain since the last on_writable()
  bool credits_blocked_ = false;      // a CREDIT among them
  bool closed_ = false;               // no more sends
  bool close_reported_ = false;
  bool hold_end_ = false;
  bool end_held_ = false;  // closed_, and the peer does not know
  wire::CloseCode close_code_ = wire::CloseCode::kNone;
  Status close_status_;
  fabric::Loan dispatching_loan_ = fabric::kNoLoan;
  bool loan_retained_ = false;
  std::uint32_t received_since_grant_ = 0;
  bool urgent_ = false;                // since the last flush: something that somebody waits for
  std::uint32_t published_calls_ = 0;  // publish() since the last flush
  bool wake_early_ = false;
  std::uint32_t early_ = 0;  // small messages since the last flush
  ChannelCounters counters_;
  // Of poll(). Kept: making them anew costs more than a poll that finds nothing.
  std::array<fabric::Completion, kPollBatch> completions_;
};

// The HELLO that this side sends, with the fields that depend on EndpointOptions filled in and a
// fresh nonce: one HELLO is for one channel.
wire::HelloBody make_hello(std::uint64_t epoch, const fabric::EndpointOptions& options,
                           std::uint32_t stream_window_bytes, std::uint32_t streams_max,
                           const std::string& node_name);

}  // namespace sanproxy::channel

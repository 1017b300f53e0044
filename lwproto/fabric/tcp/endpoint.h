// TcpEndpoint: one side of a channel over TCP.
//
// Document: docs/tcp_fabric.md.
// Role: implements fabric::Endpoint over one or more connections: puts each transfer on one of
//   them, and delivers them in the order of their numbers. Sending is in
//   endpoint_send.cc, the end of a channel in endpoint_close.cc, the rest in endpoint.cc.
// Owner: the caller of accept() or poll(). Thread: the fabric's.
// Invariants:
//   1. outstanding_ counts the cookies that poll() has not given back: in queues or in done_.
//   2. delivered_ <= posted_ <= delivered_ + receive_depth; transfers below posted_ have a slot.
//   3. open -> draining (a connection has ended: what has arrived is delivered) -> failing; or
//      open -> closing (ours has; what was committed leaves) -> failing. failing: cookies come
//      back -> done.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "lwproto/fabric/fabric.h"
#include "lwproto/fabric/tcp/core.h"
#include "lwproto/fabric/tcp/handshake.h"
#include "lwproto/fabric/tcp/receive_slots.h"
#include "lwproto/fabric/tcp/send_queue.h"
#include "lwproto/fabric/tcp/stream_in.h"
#include "lwproto/fabric/tcp/token_bucket.h"
#include "lwproto/fabric/tcp/warm_up.h"
#include "lwproto/fabric/tcp/window_share.h"

namespace sanproxy::fabric::tcp {

// Everything that a finished handshake has gathered. The connections are watched already.
struct EndpointParts {
  std::shared_ptr<Core> core;
  std::vector<std::unique_ptr<Transport>> transports;
  PeerIdentity identity;
  EndpointOptions options;
  LinkParameters link;
  WindowShare window_share;
  Sizes peer;
};

class TcpEndpoint final : public Endpoint, private Participant {
 public:
  // On failure the transports stay in `parts`.
  static Result<std::unique_ptr<TcpEndpoint>> create(EndpointParts& parts);
  ~TcpEndpoint() override;
  TcpEndpoint(const TcpEndpoint&) = delete;
  TcpEndpoint& operator=(const TcpEndpoint&) = delete;

  Transport& first_transport() { return *streams_[0]->transport; }
  // Before the endpoint is handed over: goes on with the padding, and says whether it is done.
  // kAgain meanwhile.
  Status warm_up();

  const PeerIdentity& peer() const override { return identity_; }
  LinkParameters link() const override { return link_; }
  Result<RegionKey> attach(const buffer::MemoryRegion& region) override;
  Result<std::span<std::byte>> begin_send(std::size_t inline_bytes) override;
  Status commit_send(std::size_t inline_bytes, std::span<const GatherRef> refs,
                     std::uint64_t cookie) override;
  void flush() override;
  void publish() override;
  std::size_t poll(std::span<Completion> out) override;
  void release(Loan loan) override { slots_->release(loan); }
  std::uint32_t replenish() override;
  void disconnect(Status reason) override;
  bool connected() const override { return state_ == State::kOpen; }

 private:
  enum class State : std::uint8_t { kOpen, kDraining, kClosing, kFailing, kDone };
  // Frames that are no transfers (a megabyte of padding), taken in one call: they fill no
  // completion, so nothing else ends a call while a peer goes on sending them.
  static constexpr std::size_t kWordsPerCall = 64;
  static_assert(kWordsPerCall >= kTcpStreamsMax);

  struct Stream final : PollTarget {
    // `warm_up_bytes`: the window that is to be opened first, 0 if none.
    Stream(std::unique_ptr<Transport> connection, SendQueue queue, std::uint32_t inline_bytes_max,
           std::uint64_t warm_up_bytes)
        : transport(std::move(connection)),
          out(std::move(queue)),
          in(inline_bytes_max, (kPaddingFactor + 1) * warm_up_bytes) {
      if (warm_up_bytes != 0) warm_up.emplace(warm_up_bytes);
    }
    void on_events(std::uint32_t events) override;
    std::unique_ptr<Transport> transport;
    SendQueue out;
    StreamIn in;
    std::optional<WarmUp> warm_up;  // while it lasts
    bool writable = true;
    bool broken = false;    // a write failed
    bool finished = false;  // the peer's kEnd has been read
  };
  struct Region {
    const std::byte* data = nullptr;
    std::uint64_t bytes = 0;
  };

  explicit TcpEndpoint(EndpointParts& parts);

  // Participant
  bool take_work() override;
  bool waiting() const override { return state_ == State::kDraining || state_ == State::kClosing; }
  void on_tick() override;

  // Sending.
  Status closed_status() const;
  Stream* choose_stream(std::size_t inline_bytes);
  Status resolve(std::size_t inline_bytes, std::span<const GatherRef> refs, std::span<iovec> pieces,
                 std::uint64_t& total) const;
  std::size_t write_allowance();
  bool continue_warm_up(Stream& stream);
  void write_stopped(Stream& stream, IoState state);
  void write(Stream& stream);
  std::size_t take_cookies(std::span<Completion> out);

  // Receiving.
  std::size_t receive(std::span<Completion> out);
  bool receive_from(Stream& stream, std::span<Completion> out, std::size_t& n, std::size_t& words);
  void take_word(Stream& stream);
  bool over(const Stream& stream) const { return stream.finished || stream.in.ended(); }

  // The end.
  void breach(const Status& status) { disconnect(status); }
  void end(Status reason, CloseMark mark);
  void start_deadline();
  void look_for_the_end();
  void end_with(CloseMark mark);
  void continue_closing();
  void let_go();
  std::size_t poll_failing(std::span<Completion> out);

  std::shared_ptr<Core> core_;
  PeerIdentity identity_;
  LinkParameters link_;
  WindowShare window_share_;
  State state_ = State::kOpen;
  Status reason_;
  std::uint64_t deadline_ns_ = 0;
  CloseMark peer_mark_ = CloseMark{};  // none yet
  std::vector<std::unique_ptr<Stream>> streams_;

  // Limits agreed on in the handshake.
  std::uint32_t inline_bytes_max_ = 0;
  std::uint32_t transfer_bytes_max_ = 0;
  std::uint32_t receive_depth_ = 0;
  std::uint32_t send_depth_ = 0;
  Sizes peer_;

  bool warming_ = false;  // padding is still to come, one way or the other

  // Sending.
  std::vector<Region> regions_;  // by key - 1
  std::uint64_t region_bytes_ = 0;
  std::size_t current_ = 0;          // the stream that transfers go to
  std::uint64_t current_bytes_ = 0;  // that it got since it was chosen
  Stream* begun_ = nullptr;          // where begin_send() gave space
  std::size_t space_bytes_ = 0;
  std::uint64_t sent_ = 0;  // transfers committed
  std::uint64_t unpublished_bytes_ = 0;
  std::uint32_t outstanding_ = 0;
  CookieRing done_;  // of written transfers
  CookieRing lost_;  // of those that will never be
  std::optional<TokenBucket> bucket_;
  bool waiting_ = false;    // begin_send() found no room
  bool room_news_ = false;  // poll() has found some since

  // Receiving.
  std::unique_ptr<ReceiveSlots> slots_;
  std::uint64_t delivered_ = 0;
  std::uint64_t posted_ = 0;
  std::size_t receiving_ = 0;  // the stream that is looked at first
};

}  // namespace sanproxy::fabric::tcp

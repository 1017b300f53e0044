#include "lwproto/channel/channel.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "lwproto/base/check.h"

namespace sanproxy::channel {
namespace {

// Rounds for which the wake-up for bulk data may wait.
constexpr std::uint32_t kPublishCallsMax = 4;
// References under way for which there is room from the start, where the fabric has no bound of its
// own: a usual send_depth. More of them make room for themselves.
constexpr std::uint32_t kCookiesAtFirst = 1024;

}  // namespace

void Delegate::on_packet(Channel& channel, const PacketInfo& info, const Payload& payload) {
  (void)info;
  (void)payload;
  channel.close(wire::CloseCode::kProtocolError, "a PACKET on a channel that is not for packets");
}

Channel::Channel(std::unique_ptr<fabric::Endpoint> endpoint, const wire::HelloBody& ours,
                 const wire::HelloBody& peers, Delegate& delegate)
    : endpoint_(std::move(endpoint)),
      ours_(ours),
      peers_(peers),
      delegate_(delegate),
      ledger_(peers.credits_initial, peers.credits_reserved, ours.credits_initial) {
  const std::uint32_t bound = endpoint_->references_max();
  cookies_.reserve(bound == UINT32_MAX ? kCookiesAtFirst : bound);
}

Channel::~Channel() = default;

std::string Channel::peer_name() const {
  const char* name = reinterpret_cast<const char*>(peers_.node_name);
  return {name, strnlen(name, sizeof(peers_.node_name))};
}

Status Channel::blocked(Claim claim, std::uint64_t& counter) {
  ++counter;
  blocked_ = true;
  credits_blocked_ = credits_blocked_ || claim == Claim::kCredit;
  return Status::again();
}

inline bool Channel::may_send(Claim claim) const {
  if (claim == Claim::kData) return ledger_.may_send_data();
  return claim == Claim::kCredit ? ledger_.may_send_credit() : ledger_.may_send_control();
}

inline Status Channel::open_transfer(std::size_t bytes, Claim claim) {
  if (closed_) return Status::error(Code::kDisconnected, "the channel is closed");
  if (open_) {
    if (!joining_ && writer_.room() >= bytes) return {};
    if (const Status status = finish_open(); !status.ok()) return status;
  }
  if (!may_send(claim)) return blocked(claim, counters_.blocked_no_credit);
  auto space = endpoint_->begin_send(wire::kTransferInlineBytesMax);
  if (!space.ok()) {
    if (space.status().is_again()) return blocked(claim, counters_.blocked_no_space);
    return space.status();
  }
  writer_ = wire::TransferWriter(*space);
  open_ = true;
  return {};
}

// Sends the open transfer with what has joined it.
inline Status Channel::finish_open() {
  if (!joining_) return finish_transfer({}, 0);
  joining_ = false;
  // There is room: it was looked for when the first of them came.
  SANPROXY_CHECK(
      writer_.append_data_header(joinable_.connection, joinable_.offset, joinable_.bytes));
  return finish_referenced(std::span(joinable_.refs).first(joinable_.ref_count),
                           joinable_.first_cookie);
}

Status Channel::finish_referenced(std::span<const fabric::GatherRef> refs,
                                  std::uint32_t first_cookie) {
  const Status status = finish_transfer(refs, first_cookie);
  if (!status.ok()) unsent_ = first_cookie;
  return status;
}

inline Status Channel::finish_transfer(std::span<const fabric::GatherRef> refs,
                                       std::uint64_t cookie, Then then) {
  const std::size_t inline_bytes = writer_.finish(ledger_.granted_total());
  open_ = false;
  const Status status = then == Then::kFlush ? endpoint_->commit_last(inline_bytes, refs, cookie)
                                             : endpoint_->commit_send(inline_bytes, refs, cookie);
  if (!status.ok()) return status;
  ledger_.on_sent();
  ledger_.on_grant_sent();
  received_since_grant_ = 0;
  ++counters_.transfers_out;
  return {};
}

Status Channel::send_message(wire::MessageType type, std::uint8_t flags, wire::CloseCode code,
                             const void* body, std::size_t body_bytes,
                             std::span<const std::byte> tail, Claim claim) {
  const std::size_t bytes = sizeof(wire::MessageHeader) + body_bytes + tail.size();
  const std::size_t padded = (bytes + wire::kAlignment - 1) & ~(wire::kAlignment - 1);
  if (const Status status = open_transfer(padded, claim); !status.ok()) return status;
  if (!writer_.append(type, flags, code, body, body_bytes, tail)) {
    return Status::error(Code::kInvalidArgument, "the message does not fit a transfer");
  }
  ++counters_.messages_out;
  urgent_ = urgent_ || type != wire::MessageType::kCredit;
  return {};
}

[[gnu::hot]] Status Channel::send_data_inline(std::uint64_t connection, std::uint64_t offset,
                                              std::span<const std::byte> payload) {
  const std::size_t bytes = wire::kDataHeaderBytes + payload.size();
  const std::size_t padded = (bytes + wire::kAlignment - 1) & ~(wire::kAlignment - 1);
  if (const Status status = open_transfer(padded, Claim::kData); !status.ok()) return status;
  if (!writer_.append_data(connection, offset, payload)) {
    return Status::error(Code::kInvalidArgument, "the payload is not fit for inline");
  }
  ++counters_.messages_out;
  counters_.data_bytes_out += payload.size();
  counters_.inline_bytes_out += payload.size();
  urgent_ = true;
  wake_early_when_due();
  return {};
}

// Makes the bytes the next ones of the DATA that waits for them. False if they do not fit.
bool Channel::join(std::uint64_t connection, std::uint64_t offset,
                   std::span<const fabric::GatherRef> refs, std::size_t bytes,
                   std::uint64_t cookie) {
  Joinable& to = joinable_;
  if (!joining_ || to.connection != connection || to.offset + to.bytes != offset ||
      to.ref_count + refs.size() > to.refs.size() ||
      to.bytes + bytes > wire::kDataPayloadBytesMax) {
    return false;
  }
  std::copy(refs.begin(), refs.end(), to.refs.begin() + to.ref_count);
  to.ref_count += static_cast<std::uint32_t>(refs.size());
  to.bytes += static_cast<std::uint32_t>(bytes);
  const std::uint32_t last = take_cookie(cookie);
  cookies_[to.last_cookie].next = last;
  to.last_cookie = last;
  return true;
}

Status Channel::send_data_reference(std::uint64_t connection, std::uint64_t offset,
                                    std::span<const fabric::GatherRef> refs, std::uint64_t cookie,
                                    bool more) {
  std::size_t bytes = 0;
  for (const auto& ref : refs) bytes += ref.length;
  if (bytes <= wire::kInlinePayloadBytesMax || bytes > wire::kDataPayloadBytesMax ||
      refs.size() > fabric::kGatherRefsMax) {
    return Status::error(Code::kInvalidArgument, "the payload is not fit for reference");
  }
  if (closed_) return Status::error(Code::kDisconnected, "the channel is closed");
  if (!join(connection, offset, refs, bytes, cookie)) {
    // Not in what was opened in the reserve either: the peer may keep the whole buffer.
    if (!ledger_.may_send_data()) return blocked(Claim::kData, counters_.blocked_no_credit);
    if (places_left() == 0) return blocked(Claim::kData, counters_.blocked_no_space);
    if (const Status status = open_transfer(wire::kDataHeaderBytes, Claim::kData); !status.ok()) {
      return status;
    }
    const std::uint32_t first = take_cookie(cookie);
    joinable_.connection = connection;
    joinable_.offset = offset;
    joinable_.bytes = static_cast<std::uint32_t>(bytes);
    joinable_.ref_count = static_cast<std::uint32_t>(refs.size());
    joinable_.first_cookie = joinable_.last_cookie = first;
    std::copy(refs.begin(), refs.end(), joinable_.refs.begin());
    joining_ = true;
  }
  ++counters_.messages_out;
  counters_.data_bytes_out += bytes;
  // From here on the cookie comes back, whatever becomes of the transfer.
  if (!more) {
    if (const Status status = finish_open(); !status.ok()) endpoint_->disconnect(status);
  }
  return {};
}

Status Channel::send_packet_inline(const PacketInfo& info, std::span<const std::byte> packet) {
  const std::size_t bytes = wire::padded(wire::kPacketHeaderBytes + packet.size());
  if (const Status status = open_transfer(bytes, Claim::kData); !status.ok()) return status;
  if (!writer_.append_packet(info.flags, info.body, packet)) {
    return Status::error(Code::kInvalidArgument, "the packet is not fit for inline");
  }
  ++counters_.messages_out;
  counters_.data_bytes_out += packet.size();
  counters_.inline_bytes_out += packet.size();
  urgent_ = urgent_ || !info.can_wait;
  wake_early_when_due();
  return {};
}

Status Channel::send_packet_reference(const PacketInfo& info,
                                      std::span<const fabric::GatherRef> refs,
                                      std::uint64_t cookie) {
  std::size_t bytes = 0;
  for (const auto& ref : refs) bytes += ref.length;
  if (const Status status = open_transfer(wire::kPacketHeaderBytes, Claim::kData); !status.ok()) {
    return status;
  }
  if (bytes > wire::kPacketBytesMax ||
      !writer_.append_packet_header(info.flags, info.body, static_cast<std::uint32_t>(bytes))) {
    return Status::error(Code::kInvalidArgument, "the packet is not fit for reference");
  }
  if (const Status status = finish_referenced(refs, take_cookie(cookie)); !status.ok()) {
    endpoint_->disconnect(status);
  }
  ++counters_.messages_out;
  counters_.data_bytes_out += bytes;
  urgent_ = urgent_ || !info.can_wait;
  return {};
}

std::uint32_t Channel::take_cookie(std::uint64_t value) {
  std::uint32_t index = cookies_free_;
  if (index != kNoCookie) {
    cookies_free_ = cookies_[index].next;
  } else {
    index = static_cast<std::uint32_t>(cookies_.size());
    cookies_.emplace_back();
  }
  cookies_[index] = {value, kNoCookie};
  return index;
}

void Channel::tell_sent(std::uint32_t first_cookie, bool ok) {
  for (std::uint32_t index = first_cookie; index != kNoCookie;) {
    const Cookie cookie = cookies_[index];
    cookies_[index].next = cookies_free_;
    cookies_free_ = index;
    index = cookie.next;
    delegate_.on_sent(*this, cookie.value, ok);
  }
}

// What has joined a transfer that cannot leave any more.
void Channel::tell_unsent() {
  if (std::exchange(joining_, false)) tell_sent(joinable_.first_cookie, false);
  tell_sent(std::exchange(unsent_, kNoCookie), false);
}

[[gnu::hot]] void Channel::flush() {
  const bool one = open_ && !closed_ && !joining_;
  Status status;
  if (one) {
    status = finish_transfer({}, 0, Then::kFlush);
  } else if (open_ && !closed_) {
    status = finish_open();
  }
  if (!status.ok()) [[unlikely]]
    endpoint_->disconnect(status);
  if (!one) endpoint_->flush();
  urgent_ = false;
  published_calls_ = 0;
  early_ = 0;
}

void Channel::wake_early_when_due() {
  if (wake_early_ && ++early_ % kEarlyMessages == 0 && endpoint_->peer_sleeps()) flush();
}

[[gnu::hot]] void Channel::publish() {
  if (urgent_ || ++published_calls_ >= kPublishCallsMax) return flush();
  if (open_ && !closed_) {
    if (const Status status = finish_open(); !status.ok()) endpoint_->disconnect(status);
  }
  endpoint_->publish();
}

[[gnu::hot]] std::size_t Channel::poll(std::size_t budget) {
  if (end_held_ && !close_reported_) {
    finish_close(close_status_);
    return 1;
  }
  const std::size_t count =
      endpoint_->poll({completions_.data(), std::min(budget, completions_.size())});
  // A loop that spins comes here most of the time.
  if (count == 0 && at_ease()) return 0;
  return handle_all(budget, count);
}

// What poll() found, and what more there is.
[[gnu::hot, gnu::noinline]] std::size_t Channel::handle_all(std::size_t budget, std::size_t count) {
  std::size_t handled = 0;
  std::size_t want = std::min(budget, completions_.size());
  while (count != 0) {
    handled += count;
    if (!handle(count)) return handled;
    if (count < want || handled == budget) break;
    want = std::min(budget - handled, completions_.size());
    count = endpoint_->poll({completions_.data(), want});
  }
  if (!closed_) look_after_credits();
  return handled;
}

// False if that was the last.
inline bool Channel::handle(std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const fabric::Completion& completion = completions_[i];
    switch (completion.kind) {
      case fabric::Completion::Kind::kSend:
        tell_sent(static_cast<std::uint32_t>(completion.cookie), completion.status.ok());
        break;
      case fabric::Completion::Kind::kReceive:
        on_transfer(completion);
        break;
      case fabric::Completion::Kind::kDisconnected:
        finish_close(completion.status);
        return false;
    }
  }
  return true;
}

void Channel::look_after_credits() {
  // Also without a completion: a loan released since the last poll may have freed a buffer.
  if (const std::uint32_t posted = endpoint_->replenish(); posted != 0) ledger_.on_posted(posted);
  if (ledger_.grant_due() || received_since_grant_ >= kReturnAfterBytes) return_credits();
  if (blocked_ && (ledger_.may_send_data() || (credits_blocked_ && ledger_.may_send_credit()))) {
    blocked_ = credits_blocked_ = false;
    delegate_.on_writable(*this);
  }
}

[[gnu::hot]] inline void Channel::on_transfer(const fabric::Completion& completion) {
  dispatching_loan_ = completion.loan;
  loan_retained_ = false;
  if (!closed_) {
    const fabric::Segment& head = completion.segments[0];
    received_since_grant_ += head.length;
    wire::OneData one;
    if (completion.segment_count == 1 && one.read({head.data, head.length})) {
      on_one_data(one, head.transient);
    } else {
      on_messages(completion);
    }
  }
  if (completion.loan != fabric::kNoLoan && !loan_retained_) endpoint_->release(completion.loan);
  dispatching_loan_ = fabric::kNoLoan;
}

// What every transfer must hold to, whatever is in it.
inline Status Channel::count_in(const wire::TransferHeader& header) {
  if (const Status status = ledger_.on_received(); !status.ok()) [[unlikely]]
    return status;
  if (const Status status = ledger_.on_granted(header.credits_granted); !status.ok()) [[unlikely]]
    return status;
  ++counters_.transfers_in;
  return {};
}

// From a peer that sends one small message and waits for its answer.
inline void Channel::on_one_data(const wire::OneData& one, bool transient) {
  if (const Status status = count_in(one.transfer); !status.ok()) [[unlikely]]
    return breach(status);
  ++counters_.messages_in;
  const auto bytes = static_cast<std::uint32_t>(one.payload.size());
  counters_.data_bytes_in += bytes;
  counters_.inline_bytes_in += bytes;
  const fabric::Segment piece{one.payload.data(), bytes, transient};
  delegate_.on_data(*this, one.data.connection, one.data.offset,
                    {{&piece, 1}, bytes, fabric::kNoLoan});
}

[[gnu::hot, gnu::noinline]] void Channel::on_messages(const fabric::Completion& completion) {
  const fabric::Segment& head = completion.segments[0];
  std::size_t rest = 0;
  for (std::size_t i = 1; i < completion.segment_count; ++i) rest += completion.segments[i].length;
  wire::TransferReader reader({head.data, head.length}, rest);
  const auto header = reader.begin();
  Status status = header.status();
  if (status.ok()) status = count_in(*header);
  if (status.ok()) status = dispatch(reader, completion);
  if (!status.ok()) breach(status);
}

inline Status Channel::dispatch(wire::TransferReader& reader,
                                const fabric::Completion& completion) {
  wire::Message message;
  while (!closed_ && !reader.at_end()) {
    if (const Status status = reader.next(message); !status.ok()) return status;
    ++counters_.messages_in;
    if (message.type == wire::MessageType::kData) {
      dispatch_data(message, completion);
    } else if (message.type == wire::MessageType::kPacket) {
      dispatch_packet(message, completion);
    } else if (message.type == wire::MessageType::kError) {
      close_code_ = message.code;
      closed_ = true;
      endpoint_->disconnect(Status::error(Code::kDisconnected, "the peer reported an error"));
    } else {
      delegate_.on_message(*this, message);
    }
  }
  return {};
}

namespace {

// `whole` holds the only piece of a payload that lies behind its message.
Payload payload_of(const wire::Message& message, const fabric::Completion& completion,
                   fabric::Segment& whole) {
  Payload payload;
  payload.length = message.payload_bytes;
  if (message.referenced) {
    payload.pieces = {completion.segments.data() + 1,
                      static_cast<std::size_t>(completion.segment_count - 1)};
  } else {
    whole = {message.payload.data(), message.payload_bytes, completion.segments[0].transient};
    payload.pieces = {&whole, 1};
  }
  return payload;
}

}  // namespace

void Channel::dispatch_packet(const wire::Message& message, const fabric::Completion& completion) {
  fabric::Segment whole;
  Payload payload = payload_of(message, completion, whole);
  counters_.data_bytes_in += payload.length;
  if (payload.length <= wire::kInlinePayloadBytesMax) counters_.inline_bytes_in += payload.length;
  // A transient segment ends with the next poll(), also where another segment is on loan.
  if (!payload.pieces[0].transient) payload.loan = completion.loan;
  delegate_.on_packet(*this, {message.flags, message.packet}, payload);
}

inline void Channel::dispatch_data(const wire::Message& message,
                                   const fabric::Completion& completion) {
  fabric::Segment whole;
  Payload payload = payload_of(message, completion, whole);
  counters_.data_bytes_in += payload.length;
  // Small payloads are never lent: the copy is cheaper than holding a whole receive buffer.
  if (payload.length > wire::kInlinePayloadBytesMax) {
    payload.loan = completion.loan;
  } else {
    counters_.inline_bytes_in += payload.length;
  }
  delegate_.on_data(*this, message.data.connection, message.data.offset, payload);
}

void Channel::retain(fabric::Loan loan) {
  if (loan != fabric::kNoLoan && loan == dispatching_loan_) loan_retained_ = true;
}

std::uint32_t Channel::references_left() const { return std::min(data_credits(), places_left()); }

std::uint32_t Channel::references_spare() const {
  return std::min(data_credits(), endpoint_->references_spare());
}

void Channel::release(fabric::Loan loan) {
  if (loan != fabric::kNoLoan) endpoint_->release(loan);
}

void Channel::return_credits() {
  if (open_ || !ledger_.may_send_control()) return;  // the open transfer will carry it
  auto space = endpoint_->begin_send(sizeof(wire::TransferHeader));
  if (!space.ok()) return;  // tried again at the next poll
  writer_ = wire::TransferWriter(*space);
  if (const Status status = finish_transfer({}, 0); !status.ok()) endpoint_->disconnect(status);
}

}  // namespace sanproxy::channel

// RogueChannel: one end of a channel that does what it is told, allowed or not.
//
// Role: connects to a proxy node, keeps the credit counters right unless a case wants
//   them wrong, and collects everything that comes back.
// Thread: one; blocking with deadlines.
// Invariants:
//   1. Never asserts on what the proxy sends; a case that does not see what it expects fails.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lwproto/buffer/memory_region.h"
#include "lwproto/fabric/fabric.h"
#include "lwproto/wire/codec.h"
#include "tests/rogue/raw_transfer.h"

namespace sanproxy::rogue {

inline constexpr auto kPatience = std::chrono::seconds(10);

struct Received {
  wire::Message message;
  std::vector<std::byte> payload;
};

class RogueChannel {
 public:
  // Sends `hello` as it is, of any length. After a refusal connected() is false and refusal() says
  // what came back. Where the proxy has no room, it is asked again for a while.
  RogueChannel(const std::string& address, std::span<const std::byte> hello);
  explicit RogueChannel(const std::string& address);  // with a correct HELLO
  ~RogueChannel();
  RogueChannel(const RogueChannel&) = delete;
  RogueChannel& operator=(const RogueChannel&) = delete;

  static wire::HelloBody correct_hello();

  bool connected() const { return endpoint_ && endpoint_->connected() && !ended_; }
  const Status& refusal() const { return refusal_; }
  const wire::HelloBody& our_hello() const { return our_hello_; }
  const wire::HelloBody& proxy_hello() const { return proxy_hello_; }

  // --- sending: false when the channel has ended or no room came within the deadline
  bool send(RawTransfer& transfer, std::span<const fabric::GatherRef> refs = {});
  // The same without waiting for a credit.
  bool send_without_credit(RawTransfer& transfer, std::span<const fabric::GatherRef> refs = {});
  template <typename Body>
  bool send_one(wire::MessageType type, const Body& body, std::uint8_t flags = 0,
                wire::CloseCode code = wire::CloseCode::kNone, std::size_t tail_bytes = 0) {
    RawTransfer transfer;
    transfer.add(type, body, flags, code, tail_bytes);
    return send(transfer);
  }
  // 1 MiB of our own memory that is attached to this channel.
  fabric::GatherRef own_memory(std::uint64_t offset, std::uint32_t length);
  void scribble();  // over that memory

  // --- receiving
  // Waits until `done` holds; polls meanwhile. False at the deadline.
  bool wait(const std::function<bool()>& done, std::chrono::milliseconds patience = kPatience);
  void poll();
  // Takes the first received message that fits, waiting for it.
  std::optional<Received> take(const std::function<bool(const wire::Message&)>& fits,
                               std::chrono::milliseconds patience = kPatience);
  // A message about this connection has come and was not taken yet.
  bool holds(std::uint64_t connection, wire::MessageType type) const;
  bool ended() const { return ended_; }
  // The ERROR that the proxy sent, if it did.
  std::optional<wire::CloseCode> error_code() const { return error_code_; }
  const std::string& error_text() const { return error_text_; }
  Status end_status() const { return end_status_; }

  // --- bad habits
  bool grants = true;         // false: receive buffers are never posted again
  bool returns_loans = true;  // false: borrowed memory is kept
  bool keeps_messages = true;

  std::uint32_t granted = 0;
  fabric::Endpoint& endpoint() { return *endpoint_; }

 private:
  void connect(const std::string& address, std::span<const std::byte> hello);
  bool try_connect(const std::string& address, std::span<const std::byte> hello);
  bool commit(RawTransfer& transfer, std::span<const fabric::GatherRef> refs);
  void on_transfer(const fabric::Completion& completion);
  void decode(std::span<const std::byte> head, std::size_t rest_bytes);

  std::unique_ptr<fabric::Fabric> fabric_;
  std::unique_ptr<fabric::Endpoint> endpoint_;
  buffer::MemoryRegion memory_;
  std::optional<fabric::RegionKey> memory_key_;
  wire::HelloBody our_hello_{};
  wire::HelloBody proxy_hello_{};
  std::uint32_t peer_granted_ = 0;
  std::uint32_t sent_ = 0;
  std::deque<Received> inbox_;
  std::vector<fabric::Loan> kept_loans_;
  std::optional<wire::CloseCode> error_code_;
  std::string error_text_;
  Status refusal_;
  Status end_status_;
  bool ended_ = false;
};

}  // namespace sanproxy::rogue

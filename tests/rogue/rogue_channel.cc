#include "tests/rogue/rogue_channel.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <thread>

#include "lwproto/base/random.h"
#include "lwproto/fabric/address.h"
#include "lwproto/fabric/shm/shm_fabric.h"
#include "lwproto/fabric/tcp/tcp_fabric.h"
#include "lwproto/fabric/verbs/verbs_fabric.h"

namespace sanproxy::rogue {
namespace {

using std::chrono::steady_clock;

constexpr auto kRoomPatience = std::chrono::seconds(3);

fabric::EndpointOptions options() {
  fabric::EndpointOptions out;
  out.receive_depth = 64;
  return out;
}

Result<std::unique_ptr<fabric::Fabric>> fabric_for(const std::string& address) {
  auto parsed = fabric::FabricAddress::parse(address);
  if (!parsed.ok()) return parsed.status();
  if (parsed->scheme == "shm") return fabric::make_shm_fabric();
  if (parsed->scheme == "tcp") return fabric::make_tcp_fabric();
  auto verbs = fabric::make_verbs_fabric();
  if (!verbs.ok()) return verbs.status();
  return std::unique_ptr<fabric::Fabric>(std::move(verbs).value());
}

}  // namespace

wire::HelloBody RogueChannel::correct_hello() {
  wire::HelloBody hello{};
  hello.magic = wire::kMagic;
  hello.version = wire::kVersion;
  hello.epoch = 1;
  hello.credits_initial = options().receive_depth;
  hello.credits_reserved = 4;
  hello.stream_window_bytes = 256 * 1024;
  hello.streams_max = 1024;
  std::memcpy(hello.node_name, "rogue", 5);
  fill_random(std::as_writable_bytes(std::span(hello.nonce)));
  return hello;
}

RogueChannel::RogueChannel(const std::string& address) {
  const wire::HelloBody hello = correct_hello();
  connect(address, std::as_bytes(std::span(&hello, 1)));
}

RogueChannel::RogueChannel(const std::string& address, std::span<const std::byte> hello) {
  connect(address, hello);
}

RogueChannel::~RogueChannel() {
  for (const fabric::Loan loan : kept_loans_) endpoint_->release(loan);
}

void RogueChannel::connect(const std::string& address, std::span<const std::byte> hello) {
  std::memcpy(&our_hello_, hello.data(), std::min(hello.size(), sizeof(our_hello_)));
  auto fabric = fabric_for(address);
  if (!fabric.ok()) {
    refusal_ = fabric.status();
    return;
  }
  fabric_ = std::move(fabric).value();
  // The proxy may not have noticed yet that those before us are gone.
  const auto deadline = steady_clock::now() + kRoomPatience;
  while (!try_connect(address, hello) && steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

// False when the proxy has no room now.
bool RogueChannel::try_connect(const std::string& address, std::span<const std::byte> hello) {
  refusal_ = Status::error(Code::kTimeout, "the proxy did not answer the connection");
  auto connecting = fabric_->connect(address, hello, options());
  if (!connecting.ok()) {
    refusal_ = connecting.status();
    return true;
  }
  const auto deadline = steady_clock::now() + kPatience;
  while (steady_clock::now() < deadline) {
    auto endpoint = (*connecting)->poll();
    const auto answer = (*connecting)->private_data();
    if (endpoint.ok()) {
      endpoint_ = std::move(endpoint).value();
      refusal_ = {};
      if (answer.size() == sizeof(proxy_hello_)) {
        std::memcpy(&proxy_hello_, answer.data(), sizeof(proxy_hello_));
      }
      peer_granted_ = proxy_hello_.credits_initial;
      granted = options().receive_depth;
      return true;
    }
    if (!endpoint.status().is_again()) {
      refusal_ = endpoint.status();
      wire::MessageHeader reason{};
      std::memcpy(&reason, answer.data(), std::min(answer.size(), sizeof(reason)));
      return reason.code != static_cast<std::uint16_t>(wire::CloseCode::kLimitReached);
    }
    pollfd waiting{fabric_->event_fd(), POLLIN, 0};
    if (fabric_->arm()) ::poll(&waiting, 1, 10);
    fabric_->disarm();
  }
  return true;
}

bool RogueChannel::send(RawTransfer& transfer, std::span<const fabric::GatherRef> refs) {
  if (!wait([this] { return ended_ || peer_granted_ - sent_ - 1 < 0x8000'0000u; })) return false;
  return !ended_ && commit(transfer, refs);
}

bool RogueChannel::send_without_credit(RawTransfer& transfer,
                                       std::span<const fabric::GatherRef> refs) {
  return !ended_ && commit(transfer, refs);
}

bool RogueChannel::commit(RawTransfer& transfer, std::span<const fabric::GatherRef> refs) {
  const std::span<const std::byte> bytes = transfer.finish(granted);
  const auto deadline = steady_clock::now() + kPatience;
  while (!ended_ && steady_clock::now() < deadline) {
    auto space = endpoint_->begin_send(bytes.size());
    if (space.ok()) {
      std::copy(bytes.begin(), bytes.end(), space->begin());
      const Status status = endpoint_->commit_send(bytes.size(), refs, 1);
      if (status.ok()) {
        ++sent_;
        endpoint_->flush();
        return true;
      }
      if (!status.is_again()) return false;
    } else if (!space.status().is_again()) {
      return false;
    }
    poll();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

fabric::GatherRef RogueChannel::own_memory(std::uint64_t offset, std::uint32_t length) {
  if (!memory_key_) {
    auto region = buffer::MemoryRegion::create("rogue", std::size_t{1} << 20);
    if (!region.ok()) return {};
    memory_ = std::move(region).value();
    std::fill(memory_.bytes().begin(), memory_.bytes().end(), std::byte{'r'});
    auto key = endpoint_->attach(memory_);
    if (key.ok()) memory_key_ = *key;
  }
  return fabric::GatherRef{memory_key_.value_or(0), length, offset};
}

void RogueChannel::scribble() {
  for (std::byte& byte : memory_.bytes()) byte ^= std::byte{0x5a};
}

bool RogueChannel::wait(const std::function<bool()>& done, std::chrono::milliseconds patience) {
  const auto deadline = steady_clock::now() + patience;
  while (true) {
    poll();
    if (done()) return true;
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - steady_clock::now());
    if (left.count() <= 0 || !fabric_) return false;
    pollfd waiting{fabric_->event_fd(), POLLIN, 0};
    if (fabric_->arm()) ::poll(&waiting, 1, static_cast<int>(std::min<long>(left.count(), 50)));
    fabric_->disarm();
  }
}

void RogueChannel::poll() {
  if (!endpoint_ || ended_) return;
  std::array<fabric::Completion, 16> completions;
  while (const std::size_t count = endpoint_->poll(completions)) {
    for (std::size_t i = 0; i < count; ++i) {
      const fabric::Completion& completion = completions[i];
      if (completion.kind == fabric::Completion::Kind::kReceive) {
        on_transfer(completion);
      } else if (completion.kind == fabric::Completion::Kind::kDisconnected) {
        ended_ = true;
        end_status_ = completion.status;
        return;
      }
    }
    if (grants) granted += endpoint_->replenish();
  }
  endpoint_->flush();
}

void RogueChannel::on_transfer(const fabric::Completion& completion) {
  std::size_t rest_bytes = 0;
  std::vector<std::byte> rest;
  for (std::size_t i = 1; i < completion.segment_count; ++i) {
    const fabric::Segment& segment = completion.segments[i];
    rest_bytes += segment.length;
    if (keeps_messages) rest.insert(rest.end(), segment.data, segment.data + segment.length);
  }
  const fabric::Segment& first = completion.segments[0];
  decode({first.data, first.length}, rest_bytes);
  if (!rest.empty() && !inbox_.empty()) inbox_.back().payload = std::move(rest);
  if (completion.loan == fabric::kNoLoan) return;
  if (returns_loans) {
    endpoint_->release(completion.loan);
  } else {
    kept_loans_.push_back(completion.loan);
  }
}

void RogueChannel::decode(std::span<const std::byte> head, std::size_t rest_bytes) {
  wire::TransferReader reader(head, rest_bytes);
  const auto header = reader.begin();
  if (!header.ok()) return;
  peer_granted_ = header->credits_granted;
  Received received;
  while (reader.next(received.message).ok()) {
    const wire::Message& message = received.message;
    received.payload.clear();
    if (!message.referenced) {
      received.payload.assign(message.payload.begin(), message.payload.end());
    }
    if (message.type == wire::MessageType::kError) {
      error_code_ = message.code;
      error_text_ = wire::error_text(message);
    }
    if (keeps_messages) inbox_.push_back(received);
  }
}

bool RogueChannel::holds(std::uint64_t connection, wire::MessageType type) const {
  return std::any_of(inbox_.begin(), inbox_.end(), [&](const Received& received) {
    return received.message.type == type && received.message.close.connection == connection;
  });
}

std::optional<Received> RogueChannel::take(const std::function<bool(const wire::Message&)>& fits,
                                           std::chrono::milliseconds patience) {
  std::optional<Received> found;
  wait(
      [&] {
        for (auto it = inbox_.begin(); it != inbox_.end(); ++it) {
          if (!fits(it->message)) continue;
          found = std::move(*it);
          inbox_.erase(it);
          return true;
        }
        return ended_;
      },
      patience);
  return found;
}

}  // namespace sanproxy::rogue

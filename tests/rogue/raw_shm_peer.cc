#include "tests/rogue/raw_shm_peer.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "tests/rogue/rogue_channel.h"

namespace sanproxy::rogue {

UniqueFd make_memory_file(std::uint64_t bytes, unsigned seals) {
  UniqueFd fd(memfd_create("rogue", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return {};
  if (seals != 0) fcntl(fd.get(), F_ADD_SEALS, seals);
  return fd;
}

RawShmPeer::RawShmPeer(const std::string& address) {
  fabric::EndpointOptions options;
  auto own = shm::OwnMemory::create(shm::make_sizes(options, 1u << 16));
  auto sleep = shm::OwnSleepPage::create();
  auto socket = shm::make_socket();
  if (!own.ok() || !sleep.ok() || !socket.ok()) return;
  own_ = std::move(*own);
  sleep_ = std::move(*sleep);
  own_.control().room.posted = options.receive_depth;
  const std::string path = address.substr(address.find(':') + 1);
  for (int attempt = 0; attempt < 200; ++attempt) {
    const Status status = shm::connect_to(socket->get(), path);
    if (status.ok()) {
      socket_ = std::move(*socket);
      return;
    }
    if (!status.is_again()) return;
    usleep(5'000);
  }
}

shm::HelloMessage RawShmPeer::good_hello() const {
  shm::HelloMessage hello;
  hello.private_bytes = sizeof(wire::HelloBody);
  hello.sizes = own_.sizes();
  return hello;
}

bool RawShmPeer::say(std::span<const std::byte> first, std::span<const std::byte> second,
                     std::span<const int> fds) {
  return shm::send_message(socket_.get(), first, second, fds).ok();
}

std::optional<shm::Verdict> RawShmPeer::answer() {
  pollfd waiting{socket_.get(), POLLIN, 0};
  if (::poll(&waiting, 1, 10'000) <= 0) return std::nullopt;
  std::array<std::byte, shm::kMessageBytesMax> bytes;
  shm::ReceivedMessage message = shm::receive_message(socket_.get(), bytes);
  shm::AnswerMessage answer;
  if (message.kind != shm::ReceivedMessage::Kind::kMessage || message.bytes < sizeof(answer)) {
    return std::nullopt;
  }
  std::memcpy(&answer, bytes.data(), sizeof(answer));
  if (answer.verdict == shm::Verdict::kAccepted && message.fd_count == shm::kAnswerFds) {
    auto peer = shm::PeerMemory::map(answer.sizes, message.fds[0].get(), message.fds[1].get());
    if (peer.ok()) peer_ = std::move(*peer);
    bell_ = std::move(message.fds[2]);
    wait_ = std::move(message.fds[3]);
  }
  return answer.verdict;
}

bool RawShmPeer::handshake() {
  if (!connected()) return false;
  const shm::HelloMessage hello = good_hello();
  const wire::HelloBody body = RogueChannel::correct_hello();
  const int fds[] = {memory_fd(), sleep_fd()};
  return say(std::as_bytes(std::span(&hello, 1)), std::as_bytes(std::span(&body, 1)), fds) &&
         answer() == shm::Verdict::kAccepted && peer_.has_value();
}

void RawShmPeer::wake() {
  const std::uint64_t one = 1;
  (void)!write(bell_.get(), &one, sizeof(one));
}

void RawShmPeer::publish(const shm::EntryHeader& header, std::span<const std::byte> inline_part,
                         std::span<const shm::EntryRef> refs) {
  // Always from the ring's start of what is free; cases write far less than a ring.
  std::byte* at = own_.ring() + (head_ & (own_.sizes().ring_bytes - 1));
  std::memcpy(at, &header, sizeof(header));
  if (!inline_part.empty())
    std::memcpy(at + sizeof(header), inline_part.data(), inline_part.size());
  std::byte* behind = at + sizeof(header) + shm::align_entry(inline_part.size());
  if (!refs.empty()) std::memcpy(behind, refs.data(), refs.size_bytes());
  move_head(shm::entry_bytes(inline_part.size(), refs.size()));
}

void RawShmPeer::publish_inline(std::span<const std::byte> bytes) {
  shm::EntryHeader header;
  header.inline_bytes = static_cast<std::uint32_t>(bytes.size());
  header.entry_bytes = static_cast<std::uint32_t>(shm::entry_bytes(bytes.size(), 0));
  publish(header, bytes, {});
}

void RawShmPeer::move_head(std::uint64_t by) {
  head_ += by;
  own_.control().published.ring_head.store(head_, std::memory_order_release);
  wake();
}

void RawShmPeer::return_token(std::uint32_t token) {
  own_.returns()[returns_ & (own_.sizes().return_entries - 1)] = token;
  own_.control().published.returns_head.store(++returns_, std::memory_order_release);
  wake();
}

bool RawShmPeer::send_region(int fd, std::uint64_t bytes, std::uint32_t key, std::uint64_t magic) {
  shm::RegionMessage message;
  message.magic = magic;
  message.key = key;
  message.bytes = bytes;
  return say(std::as_bytes(std::span(&message, 1)), {}, {&fd, fd >= 0 ? 1u : 0u});
}

bool RawShmPeer::ended(std::chrono::milliseconds patience) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  std::array<std::byte, shm::kMessageBytesMax> bytes;
  while (socket_.valid()) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    pollfd waiting{socket_.get(), POLLIN, 0};
    const int left_ms = static_cast<int>(std::max<long>(left.count(), 0));
    if (::poll(&waiting, 1, left_ms) <= 0) return false;
    // Region descriptions of the proxy may stand in front of the end.
    const auto message = shm::receive_message(socket_.get(), bytes);
    if (message.kind == shm::ReceivedMessage::Kind::kEnd) return true;
  }
  return true;
}

shm::CloseMark RawShmPeer::mark() const {
  return static_cast<shm::CloseMark>(peer_->control().published.close_code.load());
}

}  // namespace sanproxy::rogue

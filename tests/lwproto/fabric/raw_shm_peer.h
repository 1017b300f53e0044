// RawShmPeer: a client of the shm fabric made by hand, which can break every rule of it.
//
// Document: docs/shm_fabric.md. It uses the formats of layout.h and none of the fabric's code.
// Everything is public and nothing is checked. It blocks (with a limit) where the fabric does not.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lwproto/fabric/shm/layout.h"

namespace sanproxy::fabric::test {

struct RawShmPeer {
  static constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;
  static constexpr int kPatienceMs = 20'000;  // only ends a test that would hang

  shm::Sizes sizes;
  int socket = -1;
  int memory_fd = -1;
  int sleep_fd = -1;
  std::byte* memory = nullptr;  // ours, writable; the ring is mapped once
  std::byte* sleep = nullptr;
  const std::byte* peer_memory = nullptr;
  const std::byte* peer_sleep = nullptr;
  shm::Sizes peer_sizes;
  int doorbell_fd = -1;  // wakes the server, and readable when the server wakes us
  std::vector<std::byte> answer_data;
  std::vector<int> owned_fds;
  std::uint64_t head = 0;          // of our message ring
  std::uint64_t returns_head = 0;  // of our return ring
  std::uint64_t peer_cursor = 0;   // in the server's message ring
  std::uint32_t next_region_key = 1;

  RawShmPeer() {
    sizes.ring_bytes = 64 * 1024;
    sizes.return_entries = 1024;
    sizes.inline_bytes_max = 8192;
    sizes.transfer_bytes_max = 8192 + 65536;
    sizes.regions_max = 64;
    sizes.region_bytes_max = std::uint64_t{4} << 30;
  }
  RawShmPeer(const RawShmPeer&) = delete;
  RawShmPeer& operator=(const RawShmPeer&) = delete;
  ~RawShmPeer() {
    hang_up();
    for (const int fd : owned_fds) ::close(fd);
    // The mappings go with the process: a test may still look at them.
  }

  int own(int fd) {
    if (fd >= 0) owned_fds.push_back(fd);
    return fd;
  }
  int make_memfd(std::uint64_t bytes, int seals) {
    const int fd = own(::memfd_create("raw-peer", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(bytes)) != 0) return -1;
    if (seals != 0 && ::fcntl(fd, F_ADD_SEALS, seals) != 0) return -1;
    return fd;
  }
  static std::byte* map(int fd, std::uint64_t bytes, int protection) {
    void* at = ::mmap(nullptr, bytes, protection, MAP_SHARED, fd, 0);
    return at == MAP_FAILED ? nullptr : static_cast<std::byte*>(at);
  }

  bool dial(const std::string& path) {
    socket = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.c_str(),
                std::min(path.size(), sizeof(address.sun_path) - 1));
    return ::connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  }
  void hang_up() {
    if (socket >= 0) ::close(socket);
    socket = -1;
  }

  bool make_memory() {
    memory_fd = make_memfd(shm::memory_bytes(sizes), kSeals);
    sleep_fd = make_memfd(shm::kPageBytes, kSeals);
    if (memory_fd < 0 || sleep_fd < 0) return false;
    memory = map(memory_fd, shm::memory_bytes(sizes), PROT_READ | PROT_WRITE);
    sleep = map(sleep_fd, shm::kPageBytes, PROT_READ | PROT_WRITE);
    if (memory == nullptr || sleep == nullptr) return false;
    control().room.posted.store(1u << 30);
    return true;
  }

  bool send_raw(std::span<const std::byte> bytes, const std::vector<int>& fds) const {
    std::vector<char> control(CMSG_SPACE(sizeof(int) * fds.size()));
    iovec piece{const_cast<std::byte*>(bytes.data()), bytes.size()};
    msghdr header{};
    header.msg_iov = &piece;
    header.msg_iovlen = 1;
    if (!fds.empty()) {
      header.msg_control = control.data();
      header.msg_controllen = control.size();
      cmsghdr* c = CMSG_FIRSTHDR(&header);
      c->cmsg_level = SOL_SOCKET;
      c->cmsg_type = SCM_RIGHTS;
      c->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
      std::memcpy(CMSG_DATA(c), fds.data(), sizeof(int) * fds.size());
    }
    return ::sendmsg(socket, &header, MSG_NOSIGNAL) >= 0;
  }
  template <typename T>
  static std::vector<std::byte> message(const T& head_part, std::span<const std::byte> tail = {}) {
    std::vector<std::byte> out(sizeof(T));
    std::memcpy(out.data(), &head_part, sizeof(T));
    out.insert(out.end(), tail.begin(), tail.end());
    return out;
  }
  bool send_hello(std::span<const std::byte> private_data = {}) const {
    shm::HelloMessage hello;
    hello.private_bytes = static_cast<std::uint32_t>(private_data.size());
    hello.sizes = sizes;
    return send_raw(message(hello, private_data), {memory_fd, sleep_fd});
  }

  bool wait_readable() const {
    pollfd fd{socket, POLLIN, 0};
    return ::poll(&fd, 1, kPatienceMs) == 1;
  }
  // The server's answer, or nothing when it just closed. Maps what it gave.
  std::optional<shm::AnswerMessage> read_answer() {
    if (!wait_readable()) return std::nullopt;
    std::array<std::byte, 8192> bytes;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * shm::kAnswerFds)> control_data{};
    iovec piece{bytes.data(), bytes.size()};
    msghdr header{};
    header.msg_iov = &piece;
    header.msg_iovlen = 1;
    header.msg_control = control_data.data();
    header.msg_controllen = control_data.size();
    const ssize_t n = ::recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
    shm::AnswerMessage answer;
    if (n < static_cast<ssize_t>(sizeof(answer))) return std::nullopt;
    std::memcpy(&answer, bytes.data(), sizeof(answer));
    answer_data.assign(bytes.begin() + sizeof(answer), bytes.begin() + n);
    const cmsghdr* c = CMSG_FIRSTHDR(&header);
    if (answer.verdict != shm::Verdict::kAccepted || c == nullptr ||
        c->cmsg_len != CMSG_LEN(sizeof(int) * shm::kAnswerFds)) {
      return answer;
    }
    std::array<int, shm::kAnswerFds> fds{};
    std::memcpy(fds.data(), CMSG_DATA(c), sizeof(fds));
    for (const int fd : fds) own(fd);
    peer_sizes = answer.sizes;
    peer_memory = map(fds[0], shm::memory_bytes(peer_sizes), PROT_READ);
    peer_sleep = map(fds[1], shm::kPageBytes, PROT_READ);
    doorbell_fd = fds[2];
    return answer;
  }

  shm::ControlPage& control() const { return *reinterpret_cast<shm::ControlPage*>(memory); }
  const shm::ControlPage& peer_control() const {
    return *reinterpret_cast<const shm::ControlPage*>(peer_memory);
  }

  // Wakes the server whether it sleeps or not.
  void kick() const {
    [[maybe_unused]] const ssize_t n = ::send(doorbell_fd, "r", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
  }
  void publish() const {
    control().published.ring_head.store(head);
    kick();
  }
  // Writes at the head of our ring, byte by byte around its end.
  void write_at(std::uint64_t at, const void* from, std::size_t length) const {
    const auto* bytes = static_cast<const std::byte*>(from);
    std::byte* ring = memory + shm::ring_offset(sizes);
    for (std::size_t i = 0; i < length; ++i) ring[(at + i) & (sizes.ring_bytes - 1)] = bytes[i];
  }
  // Writes the parts as they are and moves `head` by header.entry_bytes.
  void put_entry(const shm::EntryHeader& header, std::span<const std::byte> inline_part,
                 std::span<const shm::EntryRef> refs = {}) {
    write_at(head, &header, sizeof(header));
    write_at(head + sizeof(header), inline_part.data(), inline_part.size());
    write_at(head + sizeof(header) + shm::align_entry(inline_part.size()), refs.data(),
             refs.size_bytes());
    head += header.entry_bytes;
  }
  // A correct transfer.
  void put_transfer(std::span<const std::byte> inline_part,
                    std::span<const shm::EntryRef> refs = {}, std::uint32_t token = 0) {
    shm::EntryHeader header;
    header.inline_bytes = static_cast<std::uint32_t>(inline_part.size());
    header.ref_count = static_cast<std::uint32_t>(refs.size());
    header.entry_bytes =
        static_cast<std::uint32_t>(shm::entry_bytes(inline_part.size(), refs.size()));
    header.token = token;
    put_entry(header, inline_part, refs);
  }
  // Publishes `token` in our return ring.
  void put_return(std::uint32_t token) {
    std::memcpy(memory + shm::returns_offset() +
                    (returns_head & (sizes.return_entries - 1)) * sizeof(token),
                &token, sizeof(token));
    control().published.returns_head.store(++returns_head);
    kick();
  }

  // The next transfer of the server, or nothing while there is none. Its room is given back.
  struct Taken {
    shm::EntryHeader header;
    std::vector<std::byte> inline_part;
    std::vector<shm::EntryRef> refs;
  };
  std::optional<Taken> take() {
    if (peer_control().published.ring_head.load() == peer_cursor) return std::nullopt;
    Taken out;
    read_at(peer_cursor, &out.header, sizeof(out.header));
    out.inline_part.resize(out.header.inline_bytes);
    read_at(peer_cursor + sizeof(out.header), out.inline_part.data(), out.inline_part.size());
    out.refs.resize(out.header.ref_count);
    read_at(peer_cursor + shm::entry_bytes(out.header.inline_bytes, 0), out.refs.data(),
            out.refs.size() * sizeof(shm::EntryRef));
    peer_cursor += out.header.entry_bytes;
    control().room.ring_tail.store(peer_cursor);
    return out;
  }
  void read_at(std::uint64_t at, void* to, std::size_t length) const {
    auto* bytes = static_cast<std::byte*>(to);
    const std::byte* ring = peer_memory + shm::ring_offset(peer_sizes);
    for (std::size_t i = 0; i < length; ++i) {
      bytes[i] = ring[(at + i) & (peer_sizes.ring_bytes - 1)];
    }
  }

  // A region description with any descriptor.
  bool send_region(int fd, std::uint64_t bytes) {
    shm::RegionMessage region;
    region.key = next_region_key++;
    region.bytes = bytes;
    return send_raw(message(region), {fd});
  }
  bool send_detach(std::uint32_t key, const std::vector<int>& fds = {}, std::uint64_t bytes = 0) {
    shm::RegionMessage region;
    region.magic = shm::kDetachMagic;
    region.key = key;
    region.bytes = bytes;
    return send_raw(message(region), fds);
  }
  // True once the server has closed the socket.
  bool closed() const {
    std::array<std::byte, 8192> bytes;
    return ::recv(socket, bytes.data(), bytes.size(), MSG_DONTWAIT) == 0 ||
           (errno != EAGAIN && errno != EINTR);
  }
};

}  // namespace sanproxy::fabric::test

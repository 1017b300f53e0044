#include "lwproto/fabric/shm/listener.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "lwproto/fabric/shm/endpoint.h"

namespace sanproxy::fabric::shm {
namespace {

constexpr int kAcceptsPerEvent = 64;

std::uint64_t inode_of(const std::string& path) {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0 ? info.st_ino : 0;
}

// A socket pair rings both ways; docs/shm_fabric.md "Trust" says why it is no pipe and no eventfd.
struct Doorbells {
  UniqueFd ours;
  UniqueFd peers;
};

Result<Doorbells> make_doorbells() {
  int ends[2] = {-1, -1};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) != 0) {
    return Status::error(Code::kSystem, "create doorbells", errno);
  }
  Doorbells bells;
  bells.ours = UniqueFd(ends[0]);
  bells.peers = UniqueFd(ends[1]);
  return bells;
}

}  // namespace

Result<std::unique_ptr<Listener>> ShmListener::create(std::shared_ptr<Core> core,
                                                      std::string address, const std::string& path,
                                                      const EndpointOptions& options) {
  std::unique_ptr<ShmListener> listener(
      new ShmListener(std::move(core), std::move(address), path, options));
  if (!sizes_valid(listener->sizes_)) {
    return Status::error(Code::kInvalidArgument, "endpoint options out of range for shm");
  }
  auto socket = listen_at(path, listener->core_->options().socket_mode);
  if (!socket.ok()) return socket.status();
  listener->socket_ = std::move(*socket);
  listener->inode_ = inode_of(path);
  PollTarget* target = listener.get();
  Status watched = listener->core_->watch(listener->socket_.get(), EPOLLIN, target);
  if (!watched.ok()) return watched;
  return std::unique_ptr<Listener>(std::move(listener));
}

ShmListener::ShmListener(std::shared_ptr<Core> core, std::string address, std::string path,
                         const EndpointOptions& options)
    : core_(std::move(core)),
      address_(std::move(address)),
      path_(std::move(path)),
      options_(options),
      sizes_(make_sizes(options, core_->options().ring_bytes)) {
  core_->add(static_cast<Handshaker*>(this));
}

ShmListener::~ShmListener() {
  core_->remove(static_cast<Handshaker*>(this));
  for (HalfOpen& half : half_open_) core_->unwatch(half.socket.get());
  if (!socket_.valid()) return;
  core_->unwatch(socket_.get());
  if (inode_ != 0 && inode_of(path_) == inode_) ::unlink(path_.c_str());
}

Result<ConnectRequest> ShmListener::poll() {
  // Not behind a request: they may come as fast as their owner answers them.
  if (ready_.empty() && !std::exchange(handed_out_, false)) core_->pump_if_due();
  while (!ready_.empty()) {
    const auto half = find(ready_.front());
    ready_.pop_front();
    if (half == half_open_.end() || half->dead) continue;
    ConnectRequest request;
    request.token = half->token;
    request.peer = half->identity;
    request.private_data = half->private_data;
    handed_out_ = true;
    return request;
  }
  return Status::again();
}

void ShmListener::on_events(std::uint32_t /*events*/) {
  for (int i = 0; i < kAcceptsPerEvent; ++i) {
    UniqueFd socket(::accept4(socket_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (socket.valid()) {
      admit(std::move(socket));
      continue;
    }
    if (errno == ECONNABORTED || errno == EINTR) continue;
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      // The newcomers stay in the queue, which would keep us awake until descriptors come back.
      core_->unwatch(socket_.get());
      paused_ = true;
      core_->start_ticking();
    }
    return;
  }
}

void ShmListener::on_tick() {
  if (paused_) {
    PollTarget* target = this;
    paused_ = !core_->watch(socket_.get(), EPOLLIN, target).ok();
  }
  const std::uint64_t now = core_->now_ns();
  for (HalfOpen& half : half_open_) {
    if (half.silent && now >= half.deadline_ns) half.dead = true;
  }
  sweep();
}

void ShmListener::sweep() {
  std::erase_if(half_open_, [this](HalfOpen& half) {
    if (half.dead && half.socket.valid()) core_->unwatch(half.socket.get());
    return half.dead;
  });
}

// Marks the oldest silent peer for removal; it goes at the end of this pump.
bool ShmListener::make_room() {
  std::size_t held = 0;
  for (const HalfOpen& half : half_open_) held += half.dead ? 0 : 1;
  if (held < core_->options().half_open_max) return true;
  for (HalfOpen& half : half_open_) {
    if (!half.silent || half.dead) continue;
    core_->unwatch(half.socket.get());
    half.socket.reset();
    half.dead = true;
    return true;
  }
  return false;
}

void ShmListener::admit(UniqueFd socket) {
  if (!make_room()) return;
  HalfOpen& half = half_open_.emplace_back();
  half.listener = this;
  half.token = next_token_++;
  half.deadline_ns = core_->now_ns() + core_->options().handshake_timeout_ms * 1'000'000ull;
  half.identity = identify_peer(socket.get());
  half.socket = std::move(socket);
  core_->start_ticking();
  if (!core_->watch(half.socket.get(), EPOLLIN | EPOLLRDHUP, &half).ok()) {
    half.dead = true;
    return;
  }
  read_hello(half);  // it is often there already
}

void ShmListener::HalfOpen::on_events(std::uint32_t /*events*/) {
  if (!dead && silent) listener->read_hello(*this);
}

void ShmListener::read_hello(HalfOpen& half) {
  std::array<std::byte, kMessageBytesMax> bytes;
  const ReceivedMessage message = receive_message(half.socket.get(), bytes);
  if (message.kind == ReceivedMessage::Kind::kNothing) return;
  // Whatever comes next belongs to the endpoint, so this socket is not watched until it exists.
  core_->unwatch(half.socket.get());
  half.silent = false;
  if (message.kind != ReceivedMessage::Kind::kMessage) {
    half.dead = true;
    half.socket.reset();
    return;
  }
  const Status taken = take_hello(half, message, std::span(bytes).first(message.bytes));
  if (taken.ok()) {
    ready_.push_back(half.token);
    return;
  }
  refuse(half, taken.code() == Code::kUnsupported ? Verdict::kBadVersion : Verdict::kBadHello, {});
}

Status ShmListener::take_hello(HalfOpen& half, const ReceivedMessage& message,
                               std::span<const std::byte> bytes) {
  HelloMessage hello;
  if (bytes.size() < sizeof(hello)) return Status::error(Code::kProtocol, "a short hello");
  std::memcpy(&hello, bytes.data(), sizeof(hello));
  if (hello.magic != kMagic) return Status::error(Code::kProtocol, "not a hello");
  if (hello.version != kVersion) return Status::error(Code::kUnsupported, "another version");
  const std::span<const std::byte> private_data = bytes.subspan(sizeof(hello));
  if (hello.private_bytes != private_data.size() || private_data.size() > kPrivateBytesMax ||
      message.fd_count != kHelloFds) {
    return Status::error(Code::kProtocol, "a malformed hello");
  }
  auto peer = PeerMemory::map(hello.sizes, message.fds[0].get(), message.fds[1].get());
  if (!peer.ok()) return peer.status();
  // Our owner sends messages of these sizes: with less, each later send would fail.
  if (hello.sizes.inline_bytes_max < sizes_.inline_bytes_max ||
      hello.sizes.transfer_bytes_max < sizes_.transfer_bytes_max) {
    return Status::error(Code::kProtocol, "the peer takes smaller transfers than we send");
  }
  half.peer = std::move(*peer);
  half.private_data.assign(private_data.begin(), private_data.end());
  return {};
}

// Answers no and marks the handshake for removal.
void ShmListener::refuse(HalfOpen& half, Verdict verdict, std::span<const std::byte> private_data) {
  private_data = private_data.first(std::min(private_data.size(), kPrivateBytesMax));
  AnswerMessage answer;
  answer.verdict = verdict;
  answer.private_bytes = static_cast<std::uint32_t>(private_data.size());
  // A peer that does not take the answer sees the end of the socket instead.
  (void)send_message(half.socket.get(), std::as_bytes(std::span(&answer, 1)), private_data, {});
  half.socket.reset();
  half.dead = true;
}

ShmListener::HalfOpens::iterator ShmListener::find(std::uint64_t token) {
  return std::find_if(half_open_.begin(), half_open_.end(),
                      [token](const HalfOpen& half) { return half.token == token; });
}

void ShmListener::reject(const ConnectRequest& request, std::span<const std::byte> private_data) {
  const auto half = find(request.token);
  if (half == half_open_.end() || half->dead || half->silent) return;
  refuse(*half, Verdict::kRejected, private_data);
  sweep();
}

Result<std::unique_ptr<Endpoint>> ShmListener::accept(const ConnectRequest& request,
                                                      std::span<const std::byte> private_data) {
  if (private_data.size() > kPrivateBytesMax) {
    return Status::error(Code::kInvalidArgument, "too much private data");
  }
  const auto half = find(request.token);
  if (half == half_open_.end() || half->dead || half->silent) {
    return Status::error(Code::kNotFound, "no such connect request");
  }
  EndpointParts parts;
  parts.core = core_;
  parts.socket = std::move(half->socket);
  parts.peer = std::move(half->peer);
  parts.identity = std::move(half->identity);
  parts.options = options_;
  half_open_.erase(half);

  auto own = OwnMemory::create(sizes_);
  if (!own.ok()) return own.status();
  auto bells = make_doorbells();
  if (!bells.ok()) return bells.status();
  ShmEndpoint::prepare(*own, options_);
  AnswerMessage answer;
  answer.private_bytes = static_cast<std::uint32_t>(private_data.size());
  answer.sizes = sizes_;
  const std::array<int, kAnswerFds> fds = {own->fd(), core_->sleep_fd(), bells->peers.get()};
  Status sent =
      send_message(parts.socket.get(), std::as_bytes(std::span(&answer, 1)), private_data, fds);
  if (!sent.ok()) {
    return sent.is_again() ? Status::error(Code::kDisconnected, "the peer takes no answer") : sent;
  }
  parts.own = std::move(*own);
  parts.doorbell = std::move(bells->ours);
  return ShmEndpoint::create(std::move(parts));
}

}  // namespace sanproxy::fabric::shm

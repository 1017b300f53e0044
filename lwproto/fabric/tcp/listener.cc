#include "lwproto/fabric/tcp/listener.h"

#include <openssl/crypto.h>
#include <sys/random.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "lwproto/fabric/tcp/endpoint.h"
#include "lwproto/fabric/tcp/socket.h"

namespace sanproxy::fabric::tcp {
namespace {

constexpr int kAcceptsPerEvent = 64;

// Bytes, or an end.
bool has_news(int fd) {
  std::byte first{};
  return ::recv(fd, &first, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 ||
         (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

template <typename T>
bool read_body(std::span<const std::byte> body, T& out) {
  if (body.size() < sizeof(out)) return false;
  std::memcpy(&out, body.data(), sizeof(out));
  return true;
}

}  // namespace

Result<std::unique_ptr<Listener>> TcpListener::create(std::shared_ptr<Core> core,
                                                      SocketAddress address,
                                                      const EndpointOptions& options) {
  if (Status checked = check_options(options); !checked.ok()) return checked;
  std::unique_ptr<TcpListener> listener(new TcpListener(std::move(core), options));
  auto socket = listen_at(address);
  if (!socket.ok()) return socket.status();
  listener->socket_ = std::move(*socket);
  listener->address_ = "tcp://" + address.to_string();
  Status watched = listener->core_->watch_listener(listener->socket_.get(), listener.get());
  if (!watched.ok()) return watched;
  return std::unique_ptr<Listener>(std::move(listener));
}

TcpListener::TcpListener(std::shared_ptr<Core> core, const EndpointOptions& options)
    : core_(std::move(core)), options_(options) {
  core_->add(this);
}

TcpListener::~TcpListener() {
  core_->remove(this);
  for (HalfOpen& half : half_open_) drop(half);
  if (socket_.valid()) core_->unwatch(socket_.get());
}

Result<ConnectRequest> TcpListener::poll() {
  // Not behind a request: they may come as fast as their owner answers them.
  if (ready_.empty() && !std::exchange(handed_out_, false)) {
    core_->pump_if_due();
    take_turn();
  }
  while (!ready_.empty()) {
    const auto half = find(ready_.front());
    ready_.pop_front();
    if (half == half_open_.end() || half->stage != Stage::kReady) continue;
    ConnectRequest request;
    request.token = half->number;
    request.peer = half->identity;
    request.private_data = half->private_data;
    handed_out_ = true;
    return request;
  }
  return Status::again();
}

// --- newcomers

void TcpListener::on_events(std::uint32_t /*events*/) {
  for (int i = 0; i < kAcceptsPerEvent; ++i) {
    UniqueFd fd(::accept4(socket_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (fd.valid()) {
      admit(std::move(fd));
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

// Drops a connection at `giving_way` if as many as allowed are at that stage or at `beside`: the
// oldest of the peer that has most, so that nobody but itself suffers from one that opens many.
// False when there is none to drop.
bool TcpListener::make_room(Stage giving_way, Stage beside) {
  const std::size_t held = count(giving_way) + (beside != giving_way ? count(beside) : 0);
  if (held < core_->options().half_open_max) return true;
  ++core_->counters().overflows;
  if (count(giving_way) == 0) return false;
  const std::uint32_t most = networks_.most(giving_way);
  drop(*std::find_if(half_open_.begin(), half_open_.end(), [&](const HalfOpen& half) {
    return half.stage == giving_way && half.network->count(giving_way) == most;
  }));
  return true;
}

void TcpListener::move_to(HalfOpen& half, Stage stage) {
  --count(half.stage);
  ++count(stage);
  if (half.network != nullptr) {  // it is not dead yet
    --half.network->count(half.stage);
    if (stage != Stage::kDead) ++half.network->count(stage);
  }
  half.stage = stage;
  if (stage != Stage::kDead) return;
  half.network = nullptr;
  if (std::exchange(half.awaits_turn, false)) std::erase(turns_, &half);
  core_->sweep_soon();
}

void TcpListener::admit(UniqueFd fd) {
  ++core_->counters().connections;
  if (!make_room(Stage::kSilent, Stage::kSilent)) return;
  auto address = peer_address(fd.get());
  if (!address.ok() || !prepare_socket(fd.get(), core_->options().peer_timeout_ms).ok()) return;
  HalfOpen& half = half_open_.emplace_back();
  ++count(half.stage);
  half.network = &networks_.of(address->ip);
  ++half.network->count(half.stage);
  half.listener = this;
  half.number = next_number_++;
  half.deadline_ns = core_->now_ns() + core_->options().handshake_timeout_ms * 1'000'000ull +
                     kHandshakeRoundTrips * round_trip_ns(fd.get());
  half.family = address->ip.family;
  half.identity.address = "tcp:" + address->ip.to_string();
  core_->start_ticking();
  auto transport = core_->make_transport(std::move(fd), true);
  if (transport == nullptr || !core_->watch(transport->fd(), &half).ok()) {
    move_to(half, Stage::kDead);
    return;
  }
  half.socket = HandshakeSocket(std::move(transport));
  advance(half);  // its hello is often there already
}

void TcpListener::on_tick() {
  if (paused_) paused_ = !core_->watch_listener(socket_.get(), this).ok();
  const std::uint64_t now = core_->now_ns();
  for (HalfOpen& half : half_open_) {
    if ((half.stage == Stage::kSilent || half.stage == Stage::kJoining) &&
        now >= half.deadline_ns) {
      ++core_->counters().timeouts;
      drop(half);
    }
  }
  sweep();
}

// Not while there are events that may still name one of them.
void TcpListener::sweep() {
  if (std::exchange(count(Stage::kDead), 0) == 0) return;
  std::erase_if(half_open_, [](const HalfOpen& half) { return half.stage == Stage::kDead; });
}

void TcpListener::drop(HalfOpen& half) {
  move_to(half, Stage::kDead);
  if (half.socket.open()) core_->unwatch(half.socket.fd());
  half.socket.close();
  half.window_share = {};
  for (auto& transport : half.joined) {
    if (transport != nullptr) core_->unwatch(transport->fd());
    transport.reset();
  }
}

// Ends a connection without destroying what is on its way out.
void TcpListener::part(HalfOpen& half) {
  core_->part(half.socket.take());
  drop(half);
}

// --- one handshake

void TcpListener::HalfOpen::on_events(std::uint32_t /*events*/) {
  if (stage == Stage::kSilent) listener->advance(*this);
}

void TcpListener::advance(HalfOpen& half) {
  if (core_->secure() && !half.socket.established()) return await_turn(half);
  receive(half);
}

// A step of TLS may cost a millisecond of the processor, and whoever reaches us can ask for it.
void TcpListener::await_turn(HalfOpen& half) {
  if (half.awaits_turn || (!half.tls_begun && !has_news(half.socket.fd()))) return;
  half.awaits_turn = true;
  turns_.push_back(&half);
}

void TcpListener::take_turn() {
  const std::uint32_t per_s = core_->options().tls_handshakes_per_s;
  const std::uint64_t now = core_->now_ns();
  const auto next = std::find_if(turns_.begin(), turns_.end(), [&](const HalfOpen* half) {
    return half->tls_begun || half->network->may_begin(per_s, now);
  });
  if (next == turns_.end()) return;
  HalfOpen& half = **next;
  turns_.erase(next);
  half.awaits_turn = false;
  if (!std::exchange(half.tls_begun, true)) half.network->begin(per_s, now);
  receive(half);
}

// If not, we are woken when it is.
bool TcpListener::turn_is_due() {
  if (turns_.empty()) return false;
  const std::uint32_t per_s = core_->options().tls_handshakes_per_s;
  const std::uint64_t now = core_->now_ns();
  std::uint64_t soonest = UINT64_MAX;
  for (const HalfOpen* half : turns_) {
    soonest = std::min(soonest, half->tls_begun ? now : half->network->next_begin_ns(per_s));
  }
  if (soonest <= now) return true;
  core_->wake_at(core_->wake_clock_ns() + (soonest - now));
  return false;
}

void TcpListener::receive(HalfOpen& half) {
  auto message = half.socket.receive();
  if (message.ok()) return take_message(half, *message);
  if (!message.status().is_again()) fail(half, message.status());
}

void TcpListener::fail(HalfOpen& half, const Status& status) {
  TcpCounters& counters = core_->counters();
  const bool secured = half.socket.established() || !core_->secure();
  if (!secured) {
    ++counters.tls_failures;
    // So that the alert arrives.
    if (status.code() != Code::kUnsupported) return part(half);
    // It speaks our language, but in the clear: the answer goes out in the clear too.
    const int copy = ::dup(half.socket.fd());
    AnswerBody answer;
    answer.verdict = Verdict::kTlsRequired;
    (void)send_message(*make_plain_transport(UniqueFd(copy)), MessageType::kAnswer,
                       std::as_bytes(std::span(&answer, 1)), {});
    return part(half);
  }
  if (status.code() == Code::kProtocol) ++counters.malformed;
  if (status.code() == Code::kUnsupported) {
    return refuse(half, Verdict::kBadVersion, 0, {});
  }
  drop(half);
}

void TcpListener::take_message(HalfOpen& half, const HandshakeMessage& message) {
  half.identity.certificate_name = half.socket.transport().peer_certificate_name();
  switch (message.type) {
    case MessageType::kHello:
      return take_hello(half, message.body);
    case MessageType::kJoin:
      return take_join(half, message.body);
    default:
      ++core_->counters().malformed;
      return drop(half);
  }
}

void TcpListener::take_hello(HalfOpen& half, std::span<const std::byte> body) {
  HelloBody hello;
  if (!read_body(body, hello)) {
    ++core_->counters().malformed;
    return drop(half);
  }
  // Our owner sends messages of these sizes: with less, each later send would fail.
  if (!sizes_fit(make_sizes(options_), hello.sizes)) {
    ++core_->counters().malformed;
    return refuse(half, Verdict::kBadHello, 0, {});
  }
  if (!make_room(Stage::kJoining, Stage::kReady)) return refuse(half, Verdict::kNoRoom, 0, {});
  half.link = from_wire(hello.link);
  half.sizes = hello.sizes;
  const LinkVerdict verdict = grant_link(half, hello.link.streams);
  if (!verdict.ok()) {
    ++core_->counters().refused_links;
    return refuse(half, Verdict::kBadLink, verdict.refused, {});
  }
  const auto private_data = body.subspan(sizeof(hello));
  half.private_data.assign(private_data.begin(), private_data.end());
  half.missing = hello.link.streams - 1;
  if (half.missing == 0) return complete(half);
  half.joined.resize(half.missing);
  welcome(half);
}

LinkVerdict TcpListener::grant_link(HalfOpen& half, std::uint32_t streams) {
  const TcpOptions& options = core_->options();
  LinkVerdict verdict =
      judge_link(half.link, streams, {options.streams_max, options.window_bytes_max});
  if (!verdict.ok()) return verdict;
  if (core_->windows_given() + half.link.window_bytes > options.window_total_max) {
    return {kLinkWindow, Status::error(Code::kExhausted, "link parameter window: all are given")};
  }
  verdict = apply_to_accepted(half.socket.fd(), half.family, half.link, streams);
  if (verdict.ok()) {
    half.window_share = WindowShare(core_->windows_given(), half.link.window_bytes);
  }
  return verdict;
}

void TcpListener::welcome(HalfOpen& half) {
  WelcomeBody body;
  if (::getrandom(half.token.data(), half.token.size(), 0) !=
      static_cast<ssize_t>(half.token.size())) {
    return drop(half);
  }
  body.token = half.token;
  move_to(half, Stage::kJoining);
  if (!send_message(half.socket.transport(), MessageType::kWelcome,
                    std::as_bytes(std::span(&body, 1)), {})
           .ok()) {
    drop(half);
  }
}

// One more connection of a channel whose hello we have.
void TcpListener::take_join(HalfOpen& half, std::span<const std::byte> body) {
  JoinBody join;
  if (body.size() != sizeof(join) || !read_body(body, join)) {
    ++core_->counters().malformed;
    return drop(half);
  }
  const auto target = std::find_if(half_open_.begin(), half_open_.end(), [&](const HalfOpen& h) {
    return h.stage == Stage::kJoining &&
           CRYPTO_memcmp(h.token.data(), join.token.data(), join.token.size()) == 0 &&
           h.identity.certificate_name == half.identity.certificate_name;
  });
  if (target == half_open_.end() || join.stream == 0 || join.stream > target->joined.size() ||
      target->joined[join.stream - 1] != nullptr ||
      !apply_to_accepted(half.socket.fd(), half.family, target->link, target->link.parallel_streams)
           .ok()) {
    ++core_->counters().wrong_tokens;
    return drop(half);
  }
  // Its events go to a handshake that ignores them, until an endpoint watches it.
  core_->rewatch(half.socket.fd(), &*target);
  target->joined[join.stream - 1] = half.socket.take();
  move_to(half, Stage::kDead);
  if (--target->missing == 0) complete(*target);
}

void TcpListener::complete(HalfOpen& half) {
  move_to(half, Stage::kReady);
  ready_.push_back(half.number);
  ++core_->counters().channels;
}

// Answers no and marks the handshake for removal.
void TcpListener::refuse(HalfOpen& half, Verdict verdict, std::uint32_t field,
                         std::span<const std::byte> private_data) {
  AnswerBody answer;
  answer.verdict = verdict;
  answer.parameter = field;
  answer.sizes = make_sizes(options_);
  // A peer that does not take the answer sees the end of the connection instead.
  (void)send_message(half.socket.transport(), MessageType::kAnswer,
                     std::as_bytes(std::span(&answer, 1)),
                     private_data.first(std::min(private_data.size(), kPrivateDataBytesMax)));
  part(half);
}

TcpListener::HalfOpens::iterator TcpListener::find(std::uint64_t number) {
  return std::find_if(half_open_.begin(), half_open_.end(),
                      [number](const HalfOpen& half) { return half.number == number; });
}

void TcpListener::reject(const ConnectRequest& request, std::span<const std::byte> private_data) {
  const auto half = find(request.token);
  if (half == half_open_.end() || half->stage != Stage::kReady) return;
  refuse(*half, Verdict::kRejected, 0, private_data);
}

Result<std::unique_ptr<Endpoint>> TcpListener::accept(const ConnectRequest& request,
                                                      std::span<const std::byte> private_data) {
  if (private_data.size() > kPrivateDataBytesMax) {
    return Status::error(Code::kInvalidArgument, "too much private data");
  }
  const auto half = find(request.token);
  if (half == half_open_.end() || half->stage != Stage::kReady) {
    return Status::error(Code::kNotFound, "no such connect request");
  }
  move_to(*half, Stage::kDead);
  EndpointParts parts;
  parts.core = core_;
  parts.identity = half->identity;
  parts.options = options_;
  parts.peer = half->sizes;
  parts.window_share = std::move(half->window_share);
  parts.link =
      read_back_link(half->socket.fd(), half->family, half->link, half->link.parallel_streams);
  AnswerBody answer;
  answer.sizes = make_sizes(options_);
  parts.transports.push_back(half->socket.take());
  for (auto& transport : half->joined) parts.transports.push_back(std::move(transport));
  return answer_and_create(parts, answer, private_data);
}

Result<std::unique_ptr<Endpoint>> TcpListener::answer_and_create(
    EndpointParts& parts, AnswerBody answer, std::span<const std::byte> private_data) {
  auto endpoint = TcpEndpoint::create(parts);
  if (!endpoint.ok()) {
    answer.verdict = Verdict::kNoRoom;
    (void)send_message(*parts.transports[0], MessageType::kAnswer,
                       std::as_bytes(std::span(&answer, 1)), {});
    for (auto& transport : parts.transports) core_->part(std::move(transport));
    return endpoint.status();
  }
  Status sent = send_message((*endpoint)->first_transport(), MessageType::kAnswer,
                             std::as_bytes(std::span(&answer, 1)), private_data);
  if (!sent.ok()) return sent;
  return std::unique_ptr<Endpoint>(std::move(*endpoint));
}

}  // namespace sanproxy::fabric::tcp

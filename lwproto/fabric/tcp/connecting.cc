#include "lwproto/fabric/tcp/connecting.h"

#include <sys/epoll.h>

#include <algorithm>
#include <cstring>

#include "lwproto/fabric/tcp/endpoint.h"
#include "lwproto/fabric/tcp/socket.h"

namespace sanproxy::fabric::tcp {
namespace {

// More than slow start, which doubles, and BBR's search take for the largest window.
constexpr std::uint64_t kWarmUpRoundTrips = 32;

}  // namespace

Result<std::unique_ptr<Connecting>> TcpConnecting::create(std::shared_ptr<Core> core,
                                                          const SocketAddress& address,
                                                          std::span<const std::byte> private_data,
                                                          const EndpointOptions& options) {
  if (Status checked = check_options(options); !checked.ok()) return checked;
  if (private_data.size() > kPrivateDataBytesMax) {
    return Status::error(Code::kInvalidArgument, "too much private data");
  }
  std::unique_ptr<TcpConnecting> connecting(
      new TcpConnecting(std::move(core), address, private_data, options));
  // What a peer may ask of us is no limit of what we may ask for.
  const LinkVerdict verdict = judge_link(options.link, connecting->streams(), {});
  if (!verdict.ok()) return verdict.status;
  if (Status started = connecting->start_dial(0); !started.ok()) {
    // What the address itself makes impossible is told at once, the rest by poll().
    if (started.code() == Code::kUnsupported) return started;
    connecting->fail(started);
  }
  return std::unique_ptr<Connecting>(std::move(connecting));
}

TcpConnecting::TcpConnecting(std::shared_ptr<Core> core, const SocketAddress& address,
                             std::span<const std::byte> private_data,
                             const EndpointOptions& options)
    : core_(std::move(core)),
      address_(address),
      hello_data_(private_data.begin(), private_data.end()),
      options_(options),
      deadline_ns_(core_->now_ns() + core_->options().handshake_timeout_ms * 1'000'000ull) {
  core_->add(this);
  core_->start_ticking();
}

TcpConnecting::~TcpConnecting() {
  close_all();
  core_->remove(this);
}

std::uint32_t TcpConnecting::streams() const {
  const std::uint32_t asked = options_.link.parallel_streams;
  return asked != 0 ? asked : core_->options().parallel_streams;
}

void TcpConnecting::close_all() {
  // The objects stay: we may be inside a call of one of them.
  for (const auto& dial : dials_) {
    if (!dial->socket.open()) continue;
    core_->unwatch(dial->socket.fd());
    dial->socket.close();
  }
}

void TcpConnecting::fail(const Status& status) {
  if (!waiting()) return;
  // The endpoint stays until poll(): it may be in the middle of something.
  close_all();
  failure_ = status;
  state_ = State::kFailed;
}

void TcpConnecting::on_tick() {
  if (core_->now_ns() < deadline_ns_) return;
  fail(Status::error(Code::kTimeout,
                     state_ == State::kWarming
                         ? "link parameter skip_slow_start: the window did not open in time"
                         : "the server did not answer in time"));
}

std::uint64_t TcpConnecting::warm_up_ns_max() const {
  const LinkParameters& link = options_.link;
  if (!link.skip_slow_start) return 0;
  std::uint64_t out =
      core_->options().handshake_timeout_ms * 1'000'000ull + kWarmUpRoundTrips * round_trip_ns_;
  if (link.rate_bytes_per_s != 0) {
    out += static_cast<std::uint64_t>(static_cast<double>(kPaddingFactor * link.window_bytes) *
                                      1e9 / static_cast<double>(link.rate_bytes_per_s));
  }
  return out;
}

Status TcpConnecting::start_dial(std::uint32_t stream) {
  auto fd = make_socket(address_.ip.family);
  if (!fd.ok()) return fd.status();
  if (Status prepared = prepare_socket(fd->get(), core_->options().peer_timeout_ms);
      !prepared.ok()) {
    return prepared;
  }
  // Before the connection is made: the window's scale is fixed by then.
  const LinkVerdict verdict = apply_link(fd->get(), address_.ip.family, options_.link, streams());
  if (!verdict.ok()) return verdict.status;
  if (Status dialled = dial(fd->get(), address_); !dialled.ok()) return dialled;
  auto transport = core_->make_transport(std::move(*fd), false);
  if (transport == nullptr) return Status::error(Code::kSystem, "OpenSSL has no memory");
  auto added = std::make_unique<Dial>();
  added->owner = this;
  added->stream = stream;
  if (Status watched = core_->watch(transport->fd(), added.get()); !watched.ok()) return watched;
  added->socket = HandshakeSocket(std::move(transport));
  dials_.push_back(std::move(added));
  return {};
}

void TcpConnecting::Dial::on_events(std::uint32_t events) {
  if (!socket.open() || owner == nullptr) return;
  owner->advance(*this, (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) != 0);
}

void TcpConnecting::advance(Dial& dial, bool writable) {
  if (state_ != State::kWaiting) return;
  const Status status = step(dial, writable);
  if (!status.ok() && !status.is_again()) fail(status);
}

Status TcpConnecting::step(Dial& dial, bool writable) {
  if (dial.stage == Stage::kDialling) {
    if (!writable) return Status::again();
    if (Status reached = dial_error(dial.socket.fd()); !reached.ok()) return reached;
    dial.stage = Stage::kSecuring;
    if (dial.stream == 0) {
      round_trip_ns_ = round_trip_ns(dial.socket.fd());
      deadline_ns_ += kHandshakeRoundTrips * round_trip_ns_;
    }
  }
  if (dial.stage == Stage::kSecuring) {
    if (Status established = dial.socket.establish(); !established.ok()) return established;
    if (Status said = say(dial); !said.ok()) return said;
    dial.stage = Stage::kSaid;
  }
  return listen_to(dial);
}

Status TcpConnecting::say(Dial& dial) {
  Transport& transport = dial.socket.transport();
  const std::string& wanted = core_->options().server_name;
  if (!wanted.empty() && transport.peer_certificate_name() != wanted) {
    return Status::error(Code::kPermission, "the server's certificate has another name");
  }
  if (dial.stream == 0) {
    HelloBody hello;
    hello.sizes = make_sizes(options_);
    hello.link = to_wire(options_.link, streams());
    return send_message(transport, MessageType::kHello, std::as_bytes(std::span(&hello, 1)),
                        hello_data_);
  }
  JoinBody join;
  join.token = token_;
  join.stream = dial.stream;
  return send_message(transport, MessageType::kJoin, std::as_bytes(std::span(&join, 1)), {});
}

Status TcpConnecting::listen_to(Dial& dial) {
  // The others stay silent until there are frames; an end shows on the first as well.
  while (dial.stream == 0 && state_ == State::kWaiting) {
    auto message = dial.socket.receive();
    if (!message.ok()) return message.status();
    Status taken = Status::error(Code::kProtocol, "an unexpected handshake message");
    if (message->type == MessageType::kWelcome) taken = take_welcome(message->body);
    if (message->type == MessageType::kAnswer) taken = take_answer(message->body);
    if (!taken.ok()) return taken;
  }
  return {};
}

Status TcpConnecting::take_welcome(std::span<const std::byte> body) {
  WelcomeBody welcome;
  if (welcomed_ || streams() == 1 || body.size() != sizeof(welcome)) {
    return Status::error(Code::kProtocol, "a malformed welcome");
  }
  std::memcpy(&welcome, body.data(), sizeof(welcome));
  welcomed_ = true;
  token_ = welcome.token;
  for (std::uint32_t stream = 1; stream < streams(); ++stream) {
    if (Status started = start_dial(stream); !started.ok()) return started;
  }
  return {};
}

Status TcpConnecting::take_answer(std::span<const std::byte> body) {
  AnswerBody answer;
  if (body.size() < sizeof(answer) || body.size() - sizeof(answer) > kPrivateDataBytesMax) {
    return Status::error(Code::kProtocol, "a malformed answer");
  }
  std::memcpy(&answer, body.data(), sizeof(answer));
  const auto private_data = body.subspan(sizeof(answer));
  answer_data_.assign(private_data.begin(), private_data.end());
  switch (answer.verdict) {
    case Verdict::kAccepted:
      break;
    case Verdict::kRejected:
      return Status::error(Code::kRefused, "rejected by the server");
    case Verdict::kBadVersion:
      return Status::error(Code::kUnsupported, "the server speaks another version");
    case Verdict::kBadLink:
      return refused_by_peer(answer.parameter);
    case Verdict::kTlsRequired:
      return Status::error(Code::kPermission, "the server wants TLS");
    case Verdict::kNoRoom:
      return Status::error(Code::kExhausted, "the server has no room");
    default:
      return Status::error(Code::kProtocol, "the server took offence at our hello");
  }
  if (!sizes_fit(make_sizes(options_), answer.sizes)) {
    return Status::error(Code::kProtocol, "the server takes transfers of other sizes");
  }
  if (dials_.size() != streams()) {
    return Status::error(Code::kProtocol, "an answer before all connections had joined");
  }
  peer_ = answer.sizes;
  state_ = State::kAnswered;
  return {};
}

Result<std::unique_ptr<Endpoint>> TcpConnecting::poll() {
  if (waiting()) core_->pump_if_due();
  if (waiting()) on_tick();
  if (state_ == State::kTaken) {
    return Status::error(Code::kInvalidArgument, "the endpoint was already handed out");
  }
  if (state_ == State::kAnswered) {
    auto made = make_endpoint();
    state_ = State::kWarming;
    if (made.ok()) {
      endpoint_ = std::move(*made);
      deadline_ns_ = std::max(deadline_ns_, core_->now_ns() + warm_up_ns_max());
    } else {
      fail(made.status());
    }
  }
  if (state_ == State::kWarming) {
    const Status warm = endpoint_->warm_up();
    if (warm.is_again()) return warm;
    if (warm.ok()) {
      state_ = State::kTaken;
      return std::unique_ptr<Endpoint>(std::move(endpoint_));
    }
    fail(warm);
  }
  if (state_ != State::kFailed) return Status::again();
  endpoint_.reset();
  return failure_;
}

Result<std::unique_ptr<TcpEndpoint>> TcpConnecting::make_endpoint() {
  EndpointParts parts;
  parts.core = core_;
  parts.options = options_;
  parts.peer = peer_;
  parts.identity.address = "tcp:" + address_.ip.to_string();
  parts.identity.certificate_name = dials_[0]->socket.transport().peer_certificate_name();
  parts.link = read_back_link(dials_[0]->socket.fd(), address_.ip.family, options_.link, streams());
  for (const auto& dial : dials_) parts.transports.push_back(dial->socket.take());
  auto endpoint = TcpEndpoint::create(parts);
  if (!endpoint.ok()) {
    for (auto& transport : parts.transports) core_->part(std::move(transport));
  }
  return endpoint;
}

}  // namespace sanproxy::fabric::tcp

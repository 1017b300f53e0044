// The two ends of a channel's life: the HELLO that begins it, and how it is over.
#include <algorithm>
#include <cstring>
#include <utility>

#include "lwproto/base/random.h"
#include "lwproto/channel/channel.h"

namespace sanproxy::channel {
namespace {

// Of the buffers for control messages: half of them must be two, or CREDITs alone would not make
// their receiver announce those that they came in.
constexpr std::uint32_t kReserveMin = 4;

}  // namespace

void Channel::close(wire::CloseCode code, const char* text) {
  if (closed_) return;
  close_code_ = code;
  close_status_ = Status::error(Code::kDisconnected, text);
  closed_ = true;
  end_held_ = hold_end_;
  if (!end_held_) tell_end();
}

void Channel::finish_end() {
  if (!std::exchange(end_held_, false)) return;
  tell_end();
  while (poll() != 0) {
  }
}

void Channel::tell_end() {
  const char* const text = close_status_.text();
  const std::size_t length = std::min(std::strlen(text), wire::kErrorTextBytesMax);
  wire::ErrorBody body{0, static_cast<std::uint32_t>(length)};
  closed_ = false;
  // Best effort: without a credit the peer learns of the end from the fabric alone.
  (void)send_message(wire::MessageType::kError, 0, close_code_, &body, sizeof(body),
                     std::as_bytes(std::span(text, length)), Claim::kControl);
  flush();
  closed_ = true;
  endpoint_->disconnect(close_status_);
}

void Channel::breach(const Status& status) {
  if (closed_) return;
  close(wire::CloseCode::kProtocolError, status.text());
  close_status_ = status;
}

void Channel::finish_close(const Status& status) {
  closed_ = true;
  if (close_reported_) return;
  close_reported_ = true;
  if (close_code_ == wire::CloseCode::kNone) {
    close_code_ = status.code() == Code::kProtocol ? wire::CloseCode::kProtocolError
                                                   : wire::CloseCode::kNodeDied;
  }
  if (close_status_.ok()) close_status_ = status;
  tell_unsent();
  delegate_.on_closed(*this, close_code_, close_status_);
}

wire::HelloBody make_hello(std::uint64_t epoch, const fabric::EndpointOptions& options,
                           std::uint32_t stream_window_bytes, std::uint32_t streams_max,
                           const std::string& node_name) {
  wire::HelloBody hello{};
  hello.magic = wire::kMagic;
  hello.version = wire::kVersion;
  hello.epoch = epoch;
  hello.credits_initial = options.receive_depth;
  hello.credits_reserved =
      std::max(options.receive_depth / 16, std::min(kReserveMin, options.receive_depth / 2));
  hello.stream_window_bytes = stream_window_bytes;
  hello.streams_max = streams_max;
  const std::string_view name = wire::node_name_prefix(node_name);
  std::memcpy(hello.node_name, name.data(), name.size());
  fill_random(std::as_writable_bytes(std::span(hello.nonce)));
  return hello;
}

}  // namespace sanproxy::channel

// Padding that a peer sends before its link is warm: what is refused, and that it stops nobody.
#include <sys/eventfd.h>

#include <algorithm>

#include "lwproto/fabric/tcp/endpoint.h"
#include "tests/lwproto/fabric/channel_pair.h"

namespace sanproxy::fabric::test {
namespace {

using tcp::FrameHeader;
using tcp::FrameKind;

// Brings the same frame again and again, without end.
class EndlessTransport final : public tcp::Transport {
 public:
  explicit EndlessTransport(std::uint32_t body_bytes)
      : tcp::Transport(UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))),
        header_(FrameHeader::make(FrameKind::kPadding, 0, body_bytes, 0)) {
    frame_.resize(sizeof(header_) + body_bytes);
    std::memcpy(frame_.data(), &header_, sizeof(header_));
  }

  Status establish() override { return {}; }
  tcp::Io read(std::span<iovec> pieces) override {
    std::size_t total = 0;
    for (const iovec& piece : pieces) {
      for (std::size_t done = 0; done < piece.iov_len;) {
        const std::size_t at = (read_ + total) % frame_.size();
        const std::size_t n = std::min(piece.iov_len - done, frame_.size() - at);
        std::memcpy(static_cast<std::byte*>(piece.iov_base) + done, frame_.data() + at, n);
        done += n;
        total += n;
      }
    }
    read_ += total;
    return {total, tcp::IoState::kMore};
  }
  tcp::Io write(std::span<iovec> /*pieces*/) override { return {0, tcp::IoState::kAgain}; }
  bool holds_unread() const override { return true; }

  std::uint64_t bytes_read() const { return read_; }

 private:
  FrameHeader header_;
  Bytes frame_;
  std::uint64_t read_ = 0;
};

class TcpPadding : public testing::Test {
 protected:
  // How many frames with a body of `body_bytes` are taken where `allowed` bytes were agreed on, up
  // to `enough` of them.
  std::uint64_t taken(std::uint32_t body_bytes, std::uint64_t allowed, std::uint64_t enough) {
    auto slots = tcp::ReceiveSlots::create({});
    EXPECT_TRUE(slots.ok());
    EndlessTransport transport(body_bytes);
    tcp::StreamIn in(8192, allowed);
    in.on_readable(false);
    std::uint64_t frames = 0;
    for (; frames < enough; ++frames) {
      const Status status = in.fill(transport, **slots, {});
      if (!status.ok()) {
        EXPECT_EQ(status.code(), Code::kProtocol);
        break;
      }
      EXPECT_TRUE(in.whole());
      in.skip();
    }
    return frames;
  }
};

TEST_F(TcpPadding, ThatIsEmptyIsABreach) { EXPECT_EQ(taken(0, 1 << 20, 100), 0u); }

TEST_F(TcpPadding, CountsWithItsHeaders) {
  EXPECT_EQ(taken(1, 1700, 1000), 100u);
  EXPECT_EQ(taken(tcp::kPaddingBytes, 9 * 16 * 1024, 1000), 9u) << "what an honest peer may send";
}

TEST_F(TcpPadding, WithoutEndHoldsNoCallUp) {
  for (const std::uint32_t body_bytes : {std::uint32_t{1}, std::uint32_t{tcp::kPaddingBytes}}) {
    auto core = tcp::Core::create({});
    ASSERT_TRUE(core.ok());
    tcp::EndpointParts parts;
    parts.core = *core;
    parts.link.skip_slow_start = true;
    parts.link.window_bytes = 64 << 20;
    auto transport = std::make_unique<EndlessTransport>(body_bytes);
    const EndlessTransport& endless = *transport;
    ASSERT_TRUE((*core)->watch(transport->fd(), nullptr).ok());
    parts.transports.push_back(std::move(transport));
    auto endpoint = tcp::TcpEndpoint::create(parts);
    ASSERT_TRUE(endpoint.ok());
    std::array<Completion, 4> out;
    constexpr std::uint64_t kAtMost = 4 << 20;
    std::uint64_t before = 0;
    const auto expect_little = [&](const char* call) {
      EXPECT_LE(endless.bytes_read() - before, kAtMost) << call;
      before = endless.bytes_read();
    };
    EXPECT_EQ((*endpoint)->poll(out), 0u);
    expect_little("poll");
    EXPECT_TRUE((*endpoint)->warm_up().is_again());
    expect_little("warm_up");
    EXPECT_FALSE((*core)->arm()) << "the rest is not slept on";
    EXPECT_TRUE((*endpoint)->connected());
  }
}

}  // namespace
}  // namespace sanproxy::fabric::test

// Channels over TCP with peers that break the rules of the frames, or die in the middle of one.
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>

#include "tests/lwproto/fabric/tcp/tcp_fixture.h"

namespace sanproxy::fabric::test {
namespace {

using tcp::FrameHeader;
using tcp::FrameKind;

class TcpHostile : public TcpServer {};

struct BadFrame {
  const char* what;
  FrameHeader header;
};

TEST_F(TcpHostile, AMalformedFrameIsABreach) {
  const auto transfer = [](std::uint32_t total, std::uint32_t inline_bytes,
                           std::uint64_t sequence = 0) {
    return FrameHeader::make(FrameKind::kTransfer, sequence, total, inline_bytes);
  };
  const std::vector<BadFrame> frames = {
      {"an empty transfer", transfer(0, 0)},
      {"an inline part longer than all", transfer(10, 11)},
      {"an inline part beyond the limit", transfer(8193, 8193)},
      {"an inline part all ones", transfer(~0u, ~0u)},
      {"longer than agreed", transfer(8192 + 65536 + 1, 16)},
      {"a length all ones", transfer(~0u, 0)},
      {"a number from the future", transfer(16, 16, 512)},
      {"a number all ones", transfer(16, 16, FrameHeader::kSequenceMask)},
      {"an unknown kind", FrameHeader::make(FrameKind{9}, 0, 16, 16)},
      {"a kind all ones", FrameHeader::make(FrameKind{255}, 0, 16, 16)},
      {"an end with a body", FrameHeader::make(FrameKind::kEnd, 0, 16, 1)},
      {"padding that nobody asked for", FrameHeader::make(FrameKind::kPadding, 0, 16, 0)},
      {"a warm link that nobody asked for", FrameHeader::make(FrameKind::kWarm, 0, 0, 0)},
  };
  start();
  for (const BadFrame& frame : frames) {
    RawTcpPeer raw;
    join(raw);
    if (HasFatalFailure()) return;
    ASSERT_TRUE(raw.send_frame(frame.header, 64));
    expect_breach(raw, frame.what);
    EXPECT_TRUE(victim_.received.empty()) << frame.what;
    expect_the_others_work();
  }
}

TEST_F(TcpHostile, ANumberFromThePastIsABreach) {
  start();
  RawTcpPeer raw;
  join(raw);
  ASSERT_TRUE(raw.send_transfer(0) && raw.send_transfer(1) && raw.send_transfer(1));
  expect_breach(raw, "twice");
  EXPECT_EQ(victim_.received.size(), 2u);
}

TEST_F(TcpHostile, MoreTransfersThanPostedReceivesAreABreach) {
  EndpointOptions options;
  options.receive_depth = 4;
  start({}, options);
  RawTcpPeer raw;
  join(raw);
  for (std::uint64_t i = 0; i < 5; ++i) ASSERT_TRUE(raw.send_transfer(i));
  expect_breach(raw, "five for four");
  EXPECT_EQ(victim_.received.size(), 4u);
}

TEST_F(TcpHostile, AMissingNumberIsSeenWhenNoConnectionCanBringIt) {
  start();
  RawTcpPeer first;
  RawTcpPeer second;
  join(first, {&second});
  ASSERT_TRUE(first.send_transfer(1) && second.send_transfer(2));
  expect_breach(first, "0 is missing");
  EXPECT_TRUE(victim_.received.empty());
}

TEST_F(TcpHostile, OneNumberOnTwoConnectionsIsABreachAlsoWithTheLastReceiveTaken) {
  EndpointOptions options;
  options.receive_depth = 1;
  start({}, options);
  const FrameHeader header = FrameHeader::make(FrameKind::kTransfer, 0, 60'000, 16);
  for (const std::size_t sent : {1'000u, 60'000u}) {
    RawTcpPeer first;
    RawTcpPeer second;
    join(first, {&second});
    if (HasFatalFailure()) return;
    ASSERT_TRUE(first.send_frame(header, sent) && second.send_frame(header, sent));
    EXPECT_TRUE(victim_ends()) << sent;
    EXPECT_EQ(victim_.disconnected->code(), Code::kProtocol) << sent;
    EXPECT_LE(victim_.received.size(), 1u);
    victim_.release_all();
    EXPECT_TRUE(first.ends());
    EXPECT_TRUE(second.ends());
  }
}

TEST_F(TcpHostile, ANumberThatAnotherConnectionHasDeliveredMeanwhileIsABreach) {
  start();
  RawTcpPeer first;
  RawTcpPeer second;
  join(first, {&second});
  const FrameHeader header = FrameHeader::make(FrameKind::kTransfer, 1, 60'000, 16);
  ASSERT_TRUE(second.send_frame(header, 60'000));
  for (int i = 0; i < 100; ++i) {
    fabric_->disarm();
    victim_.poll();
  }
  EXPECT_TRUE(victim_.received.empty()) << "it waits for its turn";
  ASSERT_TRUE(first.send_transfer(0) && first.send_frame(header, 60'000));
  EXPECT_TRUE(victim_ends());
  EXPECT_EQ(victim_.disconnected->code(), Code::kProtocol);
  EXPECT_EQ(victim_.received.size(), 2u);
  victim_.release_all();
}

TEST_F(TcpHostile, TransfersOutOfOrderWaitForTheirTurn) {
  start();
  RawTcpPeer first;
  RawTcpPeer second;
  join(first, {&second});
  const auto large = [](std::uint64_t sequence) {
    return FrameHeader::make(FrameKind::kTransfer, sequence, 60'000, 16);
  };
  ASSERT_TRUE(second.send_frame(large(1), 60'000) && second.send_frame(large(3), 60'000));
  for (int i = 0; i < 100; ++i) {
    fabric_->disarm();
    victim_.poll();
  }
  EXPECT_TRUE(victim_.received.empty());
  ASSERT_TRUE(first.send_transfer(0) && first.send_transfer(2));
  ASSERT_TRUE(eventually([&] {
    victim_.poll();
    return victim_.received.size() == 4;
  }));
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(victim_.received[i].content.size(), i % 2 == 0 ? 16u : 60'000u) << i;
  }
  victim_.release_all();
}

TEST_F(TcpHostile, NoiseOfAnyKindIsABreach) {
  start();
  for (unsigned seed = 0; seed < 200; ++seed) {
    RawTcpPeer raw;
    join(raw);
    if (HasFatalFailure()) return;
    Bytes noise = pattern(4096, seed);
    noise[15] = std::byte{7};  // no kind that exists
    ASSERT_TRUE(raw.send(noise));
    expect_breach(raw, "noise");
  }
}

TEST_F(TcpHostile, APeerThatDiesInsideAFrameEndsTheChannelAndGivesAllSlotsBack) {
  auto memory = buffer::MemoryRegion::create("slots", 64 * 73'728);
  ASSERT_TRUE(memory.ok());
  slot_memory_ = std::move(*memory);
  slots_ = std::make_unique<buffer::SlotPool>(slot_memory_.bytes(), 73'728);
  EndpointOptions options;
  options.receive_depth = 16;
  options.receive_memory = {slots_.get(), &slot_memory_};
  start({}, options);
  const std::size_t free = slots_->free_count();
  for (const std::size_t sent : {1u, 15u, 16u, 17u, 1000u, 59'999u}) {
    for (const bool reset : {false, true}) {
      RawTcpPeer raw;
      join(raw);
      Bytes frame = RawTcpPeer::bytes_in(FrameHeader::make(FrameKind::kTransfer, 0, 60'000, 16));
      frame.resize(16 + 60'000);
      ASSERT_TRUE(raw.send(std::span(frame).first(sent)));
      (reset ? raw.reset() : raw.close());
      ASSERT_TRUE(victim_ends());
      EXPECT_EQ(victim_.disconnected->code(), Code::kDisconnected);
      EXPECT_STREQ(victim_.disconnected->text(), "the peer vanished");
      EXPECT_TRUE(victim_.received.empty());
      victim_ = Side();
      EXPECT_EQ(slots_->free_count(), free) << sent;
    }
  }
}

TEST_F(TcpHostile, WhatCameBeforeAResetIsDelivered) {
  start();
  RawTcpPeer raw;
  join(raw);
  for (std::uint64_t i = 0; i < 10; ++i) ASSERT_TRUE(raw.send_transfer(i));
  // It is in the victim's kernel before the reset.
  int unsent = 1;
  while (unsent != 0) ASSERT_EQ(::ioctl(raw.fd(), TIOCOUTQ, &unsent), 0);
  raw.reset();
  ASSERT_TRUE(victim_ends());
  EXPECT_EQ(victim_.received.size(), 10u);
}

TEST_F(TcpHostile, OneConnectionThatIsResetEndsTheChannel) {
  start();
  RawTcpPeer first;
  RawTcpPeer second;
  join(first, {&second});
  ASSERT_TRUE(first.send_transfer(0));
  second.reset();
  ASSERT_TRUE(victim_ends());
  EXPECT_EQ(victim_.disconnected->code(), Code::kDisconnected);
  EXPECT_TRUE(first.ends());
}

TEST_F(TcpHostile, OneConnectionThatEndsWithoutAWordEndsTheChannelInTime) {
  start({.close_timeout_ms = 100, .clock = &clock_});
  RawTcpPeer first;
  RawTcpPeer second;
  join(first, {&second});
  ASSERT_TRUE(first.send_transfer(0));
  second.close();
  ASSERT_TRUE(eventually([&] {
    victim_.poll();
    return !victim_.endpoint->connected();
  }));
  EXPECT_FALSE(victim_.disconnected) << "the other may still bring something";
  ASSERT_TRUE(first.send_transfer(1));
  ASSERT_TRUE(eventually([&] {
    victim_.poll();
    return victim_.received.size() == 2;
  }));
  clock_.advance_ns(200'000'000);
  ASSERT_TRUE(victim_ends());
  EXPECT_TRUE(first.ends());
}

TEST_F(TcpHostile, ABreachThatThePeerReportsIsABreachHereToo) {
  start();
  RawTcpPeer raw;
  join(raw);
  ASSERT_TRUE(
      raw.send_frame(FrameHeader::make(FrameKind::kEnd, 0, 0,
                                       static_cast<std::uint32_t>(tcp::CloseMark::kProtocol)),
                     0));
  ASSERT_TRUE(victim_ends());
  EXPECT_EQ(victim_.disconnected->code(), Code::kProtocol);
}

TEST_F(TcpHostile, APeerThatReadsNothingCannotKeepAChannelFromEnding) {
  start({.close_timeout_ms = 100, .clock = &clock_});
  auto region = buffer::MemoryRegion::create("hostile-test", 65536);
  ASSERT_TRUE(region.ok());
  RawTcpPeer raw;
  join(raw);
  auto key = victim_.endpoint->attach(*region);
  ASSERT_TRUE(key.ok());
  const GatherRef ref{*key, 65536, 0};
  std::uint64_t sent = 0;
  while (victim_.send({}, {&ref, 1}, sent).ok()) ++sent;
  ASSERT_GT(sent, 0u);
  victim_.endpoint->disconnect(Status::error(Code::kDisconnected, "enough"));
  for (int i = 0; i < 100; ++i) {
    fabric_->disarm();
    victim_.poll();
  }
  EXPECT_FALSE(victim_.disconnected) << "what was committed has time to leave";
  clock_.advance_ns(200'000'000);
  ASSERT_TRUE(victim_ends());
  EXPECT_STREQ(victim_.disconnected->text(), "enough");
  EXPECT_EQ(victim_.sent.size(), sent) << "each cookie comes back once";
  victim_ = Side();  // before its region
}

// Our bytes reach a peer that has megabytes under way itself and reads after it has sent them.
TEST_F(TcpHostile, WhatWasCommittedArrivesHoweverMuchThePeerSendsMeanwhile) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs CAP_NET_ADMIN for a window of 32 MB";
  start({.clock = &clock_});
  auto region = buffer::MemoryRegion::create("hostile-test", 65536);
  ASSERT_TRUE(region.ok());
  RawTcpPeer raw;
  ASSERT_TRUE(raw.dial(listener_->address()));
  EndpointOptions wide;
  wide.link.window_bytes = 32 << 20;
  ASSERT_TRUE(raw.say(tcp::MessageType::kHello, RawTcpPeer::bytes_in(RawTcpPeer::hello(wide))));
  accept();
  ASSERT_TRUE(raw.read_message<tcp::AnswerBody>(tcp::MessageType::kAnswer));
  auto key = victim_.endpoint->attach(*region);
  ASSERT_TRUE(key.ok());
  const GatherRef ref{*key, 65536, 0};
  constexpr std::size_t kTransfers = 100;
  for (std::size_t i = 0; i < kTransfers; ++i) ASSERT_TRUE(victim_.send({}, {&ref, 1}, i).ok());
  victim_.endpoint->disconnect(Status::error(Code::kDisconnected, "enough"));
  ASSERT_TRUE(victim_ends());  // the kernel has all of it, and the peer only a part
  ASSERT_TRUE(raw.send(Bytes(8 << 20))) << "the window holds it, though nobody reads";
  for (int i = 0; i < 100; ++i) fabric_->disarm();
  const std::size_t committed = kTransfers * (sizeof(FrameHeader) + 65536) + sizeof(FrameHeader);
  EXPECT_EQ(raw.read(committed).size(), committed);
  victim_ = Side();  // before its region
}

TEST_F(TcpHostile, APeerThatSendsWithoutEndAfterTheEndIsCutOff) {
  start({.close_timeout_ms = 100, .clock = &clock_});
  RawTcpPeer raw;
  join(raw);
  victim_.endpoint->disconnect(Status::error(Code::kDisconnected, "enough"));
  ASSERT_TRUE(victim_ends());
  ::fcntl(raw.fd(), F_SETFL, O_NONBLOCK);
  const Bytes more(64 * 1024);
  const auto cut_off = [&] {
    fabric_->disarm();
    return ::send(raw.fd(), more.data(), more.size(), MSG_NOSIGNAL) < 0 && errno != EAGAIN;
  };
  for (int i = 0; i < 100; ++i) ASSERT_FALSE(cut_off()) << "what is on its way out has time";
  clock_.advance_ns(200'000'000);
  bool closed = false;
  for (int i = 0; i < 100 && !closed; ++i) closed = cut_off();
  EXPECT_TRUE(closed);
}

}  // namespace
}  // namespace sanproxy::fabric::test

// Segments out of order that begin inside the window and end beyond it.
#include "tests/proxynode/stack/stack_harness.h"

namespace sanproxy::stack::testing {
namespace {

// A window of 64 KB.
class StackOverrun : public ConnectedStackTest {
 protected:
  static constexpr std::uint32_t kWindowBytes = 65'536;
  void SetUp() override {
    StackTest::SetUp();
    make({.connections_max = 10,
          .receive_window_bytes = kWindowBytes,
          .heap_bytes_max = std::size_t{8} << 20});
    listen();
    conn_ = open(peer_);
    recorder_.consume = false;
  }
  void deliver_at(std::uint32_t offset, std::uint32_t bytes, std::uint8_t flags = kTcpAck) {
    Segment segment = peer_.segment(flags, pattern(bytes, offset));
    segment.seq = 1001 + offset;
    deliver(peer_.self, peer_.other, segment);
  }
  void expect_whole_window() {
    const auto sent = take();
    ASSERT_FALSE(sent.empty());
    EXPECT_EQ(sent.back().tcp.ack, 1001 + kWindowBytes);
    EXPECT_EQ(sent.back().tcp.window, 0u);
    EXPECT_EQ(recorder_.conns[conn_].received, pattern(kWindowBytes));
    EXPECT_FALSE(recorder_.conns[conn_].fin);
    stack_->consume(conn_, 16'384);
    const auto opened = take();
    ASSERT_EQ(opened.size(), 1u);
    EXPECT_EQ(window_of(opened[0]), 16'384u);
  }

  Peer peer_;
  ConnIndex conn_ = 0;
};

TEST_F(StackOverrun, of_the_first_segment_out_of_order_only_what_fits_is_taken) {
  deliver_at(kWindowBytes - 1, 60'000);
  deliver_at(0, 60'000);
  deliver_at(60'000, 5'535);
  expect_whole_window();
}

TEST_F(StackOverrun, of_one_before_others_only_what_fits_is_taken) {
  deliver_at(kWindowBytes - 1, 1);
  deliver_at(30'000, 60'000, kTcpAck | kTcpFin);
  deliver_at(0, 30'000);
  expect_whole_window();
}

TEST_F(StackOverrun, a_fin_behind_the_last_byte_of_the_window_comes_again_later) {
  deliver_at(30'000, kWindowBytes - 30'000, kTcpAck | kTcpFin);
  deliver_at(0, 30'000);
  expect_whole_window();
  peer_.snd = 1001 + kWindowBytes;
  send(peer_, kTcpAck | kTcpFin);
  EXPECT_TRUE(recorder_.conns[conn_].fin);
}

TEST_F(StackOverrun, one_that_repeats_old_bytes_is_cut_at_the_same_place) {
  deliver_at(0, 10'000);
  stack_->consume(conn_, 10'000);
  take();
  deliver_at(5'000, 60'000);
  deliver_at(60'000, 20'000);
  const auto sent = take();
  EXPECT_EQ(recorder_.conns[conn_].received, pattern(kWindowBytes + 10'000));
  EXPECT_EQ(sent.back().tcp.window, 0u);
}

TEST_F(StackOverrun, what_an_interface_lends_is_cut_as_well) {
  Segment segment = peer_.segment(kTcpAck, pattern(40'000, 30'000));
  segment.seq = 1001 + 30'000;
  const Bytes packet = make_packet(peer_.self, peer_.other, segment);
  deliver_lent(packet, 5);
  deliver_at(0, 30'000);
  expect_whole_window();
  recorder_.conns[conn_].held.clear();
  EXPECT_EQ(io_.released, std::vector<packet_io::PacketLoan>{5});
}

}  // namespace
}  // namespace sanproxy::stack::testing

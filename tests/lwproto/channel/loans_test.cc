// Received memory is given back exactly once: at once, or when whoever retained it says so.
#include "tests/lwproto/channel/channel_fixture.h"

namespace sanproxy::channel::testing {
namespace {

class Loans : public PairTest, public ::testing::WithParamInterface<Delivery> {
 protected:
  void make_with(std::uint32_t depth = 64) {
    make({.delivery = GetParam(), .depth = {depth, depth}, .reserve = {2, 2}});
  }
  static Bytes now(const Data& data) {
    Bytes out;
    for (const auto& piece : data.pieces) out.insert(out.end(), piece.begin(), piece.end());
    return out;
  }
};

TEST_P(Loans, WhatNobodyRetainsGoesBackAtOnce) {
  make_with();
  ASSERT_TRUE(a_.refer(pattern(3000, 1), 0, 42).ok());
  a_.channel->flush();
  b_.poll();
  EXPECT_NE(b_.recorder.data[0].loan, fabric::kNoLoan);
  EXPECT_EQ(b_.endpoint->loans_out(), 0u);
  settle();
  EXPECT_EQ(a_.recorder.sent, (std::vector<std::pair<std::uint64_t, bool>>{{42, true}}));
}

TEST_P(Loans, WhatIsRetainedStaysReadableUntilItIsReleasedInAnyOrder) {
  make_with();
  b_.recorder.retain = true;
  std::vector<Bytes> sent;
  for (unsigned i = 0; i < 5; ++i) {
    sent.push_back(pattern(3000 + i, i));
    ASSERT_TRUE(a_.refer(sent.back(), i * 4000, i).ok());
  }
  settle();
  for (int round = 0; round < 10; ++round) settle();
  EXPECT_EQ(b_.endpoint->loans_out(), 5u);
  for (const std::size_t i : {3u, 0u, 4u, 1u, 2u}) {
    EXPECT_TRUE(now(b_.recorder.data[i]) == sent[i]);
    b_.channel->release(b_.recorder.data[i].loan);
  }
  EXPECT_EQ(b_.endpoint->loans_out(), 0u);
  settle();
  EXPECT_EQ(a_.recorder.sent.size(), 5u);
}

TEST_P(Loans, NoTwoPayloadsShareALoanAndSmallOnesHaveNone) {
  make_with();
  b_.recorder.retain = true;
  for (unsigned i = 0; i < 4; ++i) {
    ASSERT_TRUE(a_.channel->send_data_inline(1, 0, pattern(1024, i)).ok());
    ASSERT_TRUE(a_.refer(pattern(1025, i), i * 2000, i).ok());
  }
  settle();
  ASSERT_EQ(b_.recorder.data.size(), 8u);
  std::vector<fabric::Loan> loans;
  for (const Data& data : b_.recorder.data) {
    EXPECT_EQ(data.loan == fabric::kNoLoan, data.bytes.size() <= 1024);
    if (data.loan != fabric::kNoLoan) loans.push_back(data.loan);
  }
  std::sort(loans.begin(), loans.end());
  EXPECT_EQ(std::unique(loans.begin(), loans.end()), loans.end());
  EXPECT_EQ(b_.endpoint->loans_out(), 4u);
  for (const fabric::Loan loan : loans) b_.channel->release(loan);
}

TEST_P(Loans, RetainingSomethingElseKeepsNothing) {
  make_with();
  b_.recorder.in_data = [&] {
    b_.channel->retain(fabric::kNoLoan);
    b_.channel->retain(b_.recorder.data.back().loan + 1);
  };
  ASSERT_TRUE(a_.refer(pattern(3000, 1), 0, 1).ok());
  settle();
  EXPECT_EQ(b_.endpoint->loans_out(), 0u);
  b_.channel->retain(b_.recorder.data[0].loan);  // too late
  b_.channel->release(fabric::kNoLoan);
  settle();
  EXPECT_EQ(a_.recorder.sent.size(), 1u);
}

TEST_P(Loans, StayReadableAfterTheChannelHasEnded) {
  make_with();
  b_.recorder.retain = true;
  const Bytes sent = pattern(5000, 8);
  ASSERT_TRUE(a_.refer(sent, 0, 1).ok());
  settle();
  a_.channel->close(wire::CloseCode::kReset, "end");
  while (b_.poll() != 0) {
  }
  EXPECT_TRUE(now(b_.recorder.data[0]) == sent);
  b_.channel->release(b_.recorder.data[0].loan);
  EXPECT_EQ(b_.endpoint->loans_out(), 0u);
  a_.poll();
}

TEST_P(Loans, AreGivenBackWhenTheirMessageIsABreach) {
  make_with();
  b_.recorder.retain = true;
  b_.recorder.in_data = [&] {
    b_.channel->close(wire::CloseCode::kProtocolError, "no");
    // Retained and closed in one breath: still ours to give back.
  };
  ASSERT_TRUE(a_.refer(pattern(5000, 8), 0, 1).ok());
  ASSERT_TRUE(a_.refer(pattern(5000, 9), 8000, 2).ok());
  a_.channel->flush();
  while (b_.poll() != 0) {
  }
  EXPECT_EQ(b_.recorder.data.size(), 1u);
  EXPECT_EQ(b_.endpoint->loans_out(), 1u) << "the second one was not even read";
  b_.channel->release(b_.recorder.data[0].loan);
  while (a_.poll() != 0) {
  }
  EXPECT_EQ(a_.recorder.sent.size(), 2u);
}

INSTANTIATE_TEST_SUITE_P(Fabric, Loans,
                         ::testing::Values(Delivery::kLoans, Delivery::kReceiveBuffers),
                         [](const auto& param) {
                           return param.param == Delivery::kLoans ? "Lent" : "ReceiveBuffers";
                         });

using HeldBuffers = PairTest;

TEST_F(HeldBuffers, SlowTheSenderUntilTheyAreReleased) {
  make({.delivery = Delivery::kReceiveBuffers, .depth = {8, 8}, .reserve = {2, 2}});
  b_.recorder.retain = true;
  unsigned sent = 0;
  const auto pump = [&] {
    while (sent < 100 && a_.refer(pattern(1500, sent), sent * 2000, sent).ok()) {
      ++sent;
      a_.channel->flush();
    }
  };
  a_.recorder.in_writable = pump;
  std::size_t released = 0;
  for (int round = 0; round < 5000 && b_.recorder.data.size() < 100; ++round) {
    pump();
    settle();
    if (released < b_.recorder.data.size()) b_.channel->release(b_.recorder.data[released++].loan);
  }
  EXPECT_EQ(b_.recorder.data.size(), 100u);
  while (released < b_.recorder.data.size()) b_.channel->release(b_.recorder.data[released++].loan);
  settle();
  EXPECT_EQ(a_.recorder.sent.size(), 100u);
}

}  // namespace
}  // namespace sanproxy::channel::testing

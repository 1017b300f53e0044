#include "lwproto/flow/stream_window.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <random>

namespace sanproxy::flow {
namespace {

TEST(SendWindow, OpensByWhatThePeerFrees) {
  SendWindow window(100);
  EXPECT_EQ(window.available(), 100u);
  window.on_sent(100);
  EXPECT_EQ(window.available(), 0u);
  ASSERT_TRUE(window.on_credit(30, 10).ok());
  EXPECT_EQ(window.available(), 30u);
  EXPECT_EQ(window.in_flight(), 70u);
  EXPECT_EQ(window.acked(), 10u);
}

TEST(SendWindow, CountsReferencesInFlightByTheirShareOfTheBytes) {
  SendWindow window(1000);
  for (int i = 0; i < 4; ++i) {
    window.on_sent(100);
    window.on_reference();
  }
  window.on_sent(100);  // inline
  EXPECT_EQ(window.references(), 4u);
  ASSERT_TRUE(window.on_credit(0, 0).ok());
  EXPECT_EQ(window.references(), 4u);
  ASSERT_TRUE(window.on_credit(250, 0).ok());
  EXPECT_EQ(window.references(), 2u);
  ASSERT_TRUE(window.on_credit(499, 0).ok());
  EXPECT_EQ(window.references(), 1u) << "something is in flight";
  ASSERT_TRUE(window.on_credit(500, 0).ok());
  EXPECT_EQ(window.references(), 0u);
  ASSERT_TRUE(window.on_credit(500, 500).ok()) << "with nothing in flight";
}

TEST(SendWindow, HoldsNoMoreReferencesThanItLeavesToOthersButAlwaysSomeBytes) {
  constexpr std::uint32_t kMin = SendWindow::kReferredBytesMin;
  SendWindow window(1 << 24);
  const auto send = [&](std::uint32_t bytes) {
    window.on_sent(bytes);
    window.on_reference();
  };
  EXPECT_TRUE(window.may_refer(0)) << "nothing is in flight";
  send(kMin - 1);
  EXPECT_TRUE(window.may_refer(0));
  send(1);
  EXPECT_FALSE(window.may_refer(0));
  EXPECT_FALSE(window.may_refer(2));
  EXPECT_TRUE(window.may_refer(3));
  std::uint32_t left = 98;
  while (window.may_refer(left)) {
    send(5000);
    --left;
  }
  EXPECT_EQ(window.references(), 50u);
  EXPECT_EQ(left, 50u);
}

TEST(SendWindow, JudgesEveryPossibleCreditRightly) {
  // All small states and all small credits: legal is exactly
  // freed <= new freed <= sent and acked <= new acked <= new freed.
  for (std::uint64_t sent = 0; sent <= 6; ++sent) {
    for (std::uint64_t freed = 0; freed <= sent; ++freed) {
      for (std::uint64_t acked = 0; acked <= freed; ++acked) {
        for (std::uint64_t new_freed = 0; new_freed <= 8; ++new_freed) {
          for (std::uint64_t new_acked = 0; new_acked <= 8; ++new_acked) {
            SendWindow window(8);
            window.on_sent(static_cast<std::uint32_t>(sent));
            ASSERT_TRUE(window.on_credit(freed, acked).ok());
            const bool legal = new_freed >= freed && new_freed <= sent && new_acked >= acked &&
                               new_acked <= new_freed;
            const Status status = window.on_credit(new_freed, new_acked);
            ASSERT_EQ(status.ok(), legal)
                << sent << ' ' << freed << ' ' << acked << ' ' << new_freed << ' ' << new_acked;
            ASSERT_EQ(window.freed(), legal ? new_freed : freed);
            ASSERT_EQ(window.acked(), legal ? new_acked : acked);
          }
        }
      }
    }
  }
}

TEST(SendWindow, RefusesOffsetsFromTheEndOfTheNumberRange) {
  SendWindow window(100);
  window.on_sent(50);
  EXPECT_EQ(window.on_credit(UINT64_MAX, 0).code(), Code::kProtocol);
  EXPECT_EQ(window.on_credit(UINT64_MAX, UINT64_MAX).code(), Code::kProtocol);
  EXPECT_EQ(window.on_credit(0, UINT64_MAX).code(), Code::kProtocol);
}

TEST(SendWindowDeath, SendingBeyondTheWindowIsOurOwnBug) {
  SendWindow window(10);
  window.on_sent(10);
  EXPECT_DEATH(window.on_sent(1), "invariant broken");
}

TEST(ReceiveWindow, JudgesEveryPossibleDataRightly) {
  for (std::uint32_t received = 0; received <= 8; ++received) {
    for (std::uint32_t freed = 0; freed <= received; ++freed) {
      for (const bool announced : {false, true}) {
        for (std::uint64_t offset = 0; offset <= 10; ++offset) {
          for (std::uint32_t bytes = 1; bytes <= 10; ++bytes) {
            ReceiveWindow window(8);
            if (received != 0) {
              ASSERT_TRUE(window.on_data(0, received).ok());
            }
            window.on_freed(freed);
            if (announced) (void)window.announce();
            const std::uint32_t limit = 8 + (announced ? freed : 0);
            const bool legal = offset == received && received + bytes <= limit;
            ASSERT_EQ(window.on_data(offset, bytes).ok(), legal)
                << received << ' ' << freed << ' ' << announced << ' ' << offset << ' ' << bytes;
            ASSERT_EQ(window.received(), legal ? received + bytes : received);
          }
        }
      }
    }
  }
}

TEST(ReceiveWindow, NamesTheRuleThatWasBroken) {
  ReceiveWindow window(10);
  ASSERT_TRUE(window.on_data(0, 5).ok());
  EXPECT_STREQ(window.on_data(6, 1).text(), "a DATA leaves a gap");
  EXPECT_STREQ(window.on_data(4, 1).text(), "a DATA overlaps the last one");
  EXPECT_STREQ(window.on_data(5, 6).text(), "a DATA overruns the window");
  EXPECT_STREQ(window.on_data(5, 0xffff'ffffu).text(), "a DATA overruns the window");
  EXPECT_STREQ(window.on_data(UINT64_MAX, 1).text(), "a DATA leaves a gap");
}

TEST(ReceiveWindow, OwesACreditWhenAQuarterOfTheWindowIsFree) {
  ReceiveWindow window(100);
  EXPECT_FALSE(window.credit_due());
  ASSERT_TRUE(window.on_data(0, 100).ok());
  window.on_freed(24);
  EXPECT_FALSE(window.credit_due());
  EXPECT_TRUE(window.credit_pending());
  window.on_freed(1);
  EXPECT_TRUE(window.credit_due());
  EXPECT_EQ(window.announce(), 25u);
  EXPECT_FALSE(window.credit_due());
  EXPECT_FALSE(window.credit_pending());
}

TEST(ReceiveWindow, OwesACreditForAQuarterOfWhatIsInFlightToASenderThatIsHeldBack) {
  constexpr std::uint32_t kMin = kCreditDueBytesMin;
  for (const std::uint32_t in_flight : {kMin, 2 * kMin, 64 * kMin}) {
    ReceiveWindow window(256 * kMin);
    ASSERT_TRUE(window.on_data(0, in_flight).ok());
    const std::uint32_t due = std::max(kMin, in_flight / 4);
    window.on_freed(due - 1);
    EXPECT_FALSE(window.credit_due()) << in_flight;
    window.on_freed(1);
    EXPECT_TRUE(window.credit_due()) << in_flight;
  }
}

TEST(ReceiveWindow, OwesNoCreditForNothingHoweverSmallTheWindow) {
  for (std::uint32_t bytes = 0; bytes < 8; ++bytes) {
    const ReceiveWindow window(bytes);
    EXPECT_FALSE(window.credit_due()) << bytes;
  }
}

TEST(ReceiveWindowDeath, FreeingMoreThanIsHeldIsOurOwnBug) {
  ReceiveWindow window(10);
  ASSERT_TRUE(window.on_data(0, 5).ok());
  EXPECT_DEATH(window.on_freed(6), "invariant broken");
}

// Both windows of one direction, joined by two queues, driven at random.
TEST(Windows, SenderAndReceiverAgreeWhateverTheTiming) {
  std::mt19937 random(11);
  for (int run = 0; run < 300; ++run) {
    const auto window_bytes = static_cast<std::uint32_t>(1 + random() % 200);
    SendWindow sender(window_bytes);
    ReceiveWindow receiver(window_bytes);
    std::deque<std::pair<std::uint64_t, std::uint32_t>> data;
    std::deque<std::uint64_t> credits;
    for (int step = 0; step < 2000; ++step) {
      switch (random() % 4) {
        case 0:
          if (sender.available() != 0) {
            const auto bytes = static_cast<std::uint32_t>(1 + random() % sender.available());
            data.emplace_back(sender.sent(), bytes);
            sender.on_sent(bytes);
          }
          break;
        case 1:
          if (!data.empty()) {
            ASSERT_TRUE(receiver.on_data(data.front().first, data.front().second).ok());
            data.pop_front();
          }
          break;
        case 2:
          if (receiver.held() != 0) {
            receiver.on_freed(static_cast<std::uint32_t>(1 + random() % receiver.held()));
          }
          if (receiver.credit_due()) credits.push_back(receiver.announce());
          break;
        default:
          if (!credits.empty()) {
            ASSERT_TRUE(sender.on_credit(credits.front(), 0).ok());
            credits.pop_front();
          }
      }
      ASSERT_LE(sender.in_flight(), window_bytes);
      ASSERT_LE(receiver.held(), window_bytes);
    }
    // When everything has arrived and is freed, at least three quarters of the window are open.
    for (; !data.empty(); data.pop_front()) {
      ASSERT_TRUE(receiver.on_data(data.front().first, data.front().second).ok());
    }
    receiver.on_freed(static_cast<std::uint32_t>(receiver.held()));
    if (receiver.credit_due()) credits.push_back(receiver.announce());
    for (; !credits.empty(); credits.pop_front()) {
      ASSERT_TRUE(sender.on_credit(credits.front(), 0).ok());
    }
    EXPECT_GT(sender.available() + window_bytes / 4 + 1, window_bytes);
  }
}

TEST(Windows, ManyTerabytesDoNotWrap) {
  constexpr std::uint32_t kWindow = 1u << 30;
  SendWindow sender(kWindow);
  ReceiveWindow receiver(kWindow);
  for (int i = 0; i < 10'000; ++i) {
    ASSERT_TRUE(receiver.on_data(sender.sent(), kWindow).ok());
    sender.on_sent(kWindow);
    receiver.on_freed(kWindow);
    const std::uint64_t freed = receiver.announce();
    ASSERT_TRUE(sender.on_credit(freed, freed).ok());
  }
  EXPECT_EQ(sender.acked(), std::uint64_t{10'000} << 30);
  EXPECT_EQ(sender.available(), kWindow);
}

}  // namespace
}  // namespace sanproxy::flow

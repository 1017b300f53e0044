#include "netnode/packet_io/send_kick.h"

#include <gtest/gtest.h>

#include <vector>

namespace sanproxy::packet_io {
namespace {

class SendKickTest : public ::testing::Test {
 protected:
  // Kicks once; the kernel answers so, and then with the last of these for ever.
  void run(const std::vector<int>& answers) {
    calls_ = reclaims_ = 0;
    kick_.run([&] { return waits_; },
              [&] {
                const auto i = static_cast<std::size_t>(calls_++);
                return answers[std::min(i, answers.size() - 1)];
              },
              [&] { ++reclaims_; });
  }

  SendKick kick_;
  bool waits_ = true;
  int calls_ = 0;
  int reclaims_ = 0;
};

TEST_F(SendKickTest, WhatTheKernelHasTakenIsSent) {
  EXPECT_FALSE(kick_.unsent());
  kick_.pushed();
  EXPECT_TRUE(kick_.unsent());
  run({0});
  EXPECT_FALSE(kick_.unsent());
  EXPECT_EQ(calls_, 1);
}

TEST_F(SendKickTest, ItGoesOnBatchByBatchAndBehindOneThatWasLost) {
  kick_.pushed();
  run({EAGAIN, EINTR, EBUSY, EAGAIN, 0});
  EXPECT_FALSE(kick_.unsent());
  EXPECT_EQ(calls_, 5);
  EXPECT_EQ(reclaims_, 4);
}

TEST_F(SendKickTest, WhatIsLeftWhenItGivesUpIsToldAgain) {
  for (const int error : {EAGAIN, EBUSY, ENOBUFS, ENETDOWN}) {
    kick_.pushed();
    run({error});
    EXPECT_TRUE(kick_.unsent()) << error;
    EXPECT_LE(calls_, SendKick::kCallsMax);
    run({0});
    EXPECT_FALSE(kick_.unsent()) << error;
  }
}

TEST_F(SendKickTest, AKernelThatIsAwakeIsNotCalled) {
  waits_ = false;
  kick_.pushed();
  run({ENETDOWN});
  EXPECT_FALSE(kick_.unsent());
  EXPECT_EQ(calls_, 0);
}

}  // namespace
}  // namespace sanproxy::packet_io

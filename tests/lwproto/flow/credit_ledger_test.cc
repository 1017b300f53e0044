#include "lwproto/flow/credit_ledger.h"

#include <gtest/gtest.h>

namespace sanproxy::flow {
namespace {

constexpr std::uint32_t kNearWrap = 0xffff'fffdu;

TEST(CreditLedger, StartsWithWhatHelloPosted) {
  const CreditLedger ledger(16, 4, 8);
  EXPECT_EQ(ledger.available(), 16u);
  EXPECT_EQ(ledger.granted_total(), 8u);
  EXPECT_EQ(ledger.unannounced(), 0u);
  EXPECT_FALSE(ledger.grant_due());
  EXPECT_TRUE(ledger.may_send_data());
}

TEST(CreditLedger, WithoutAPeerMaySendNothing) {
  CreditLedger ledger;
  EXPECT_FALSE(ledger.may_send_data());
  EXPECT_FALSE(ledger.may_send_control());
  EXPECT_FALSE(ledger.on_received().ok());
}

TEST(CreditLedger, KeepsTheReserveFromDataHalfOfItFromCreditAndNoneFromControl) {
  CreditLedger ledger(16, 6, 16);
  while (ledger.may_send_data()) ledger.on_sent();
  EXPECT_EQ(ledger.available(), 6u);
  while (ledger.may_send_credit()) ledger.on_sent();
  EXPECT_EQ(ledger.available(), 3u);
  while (ledger.may_send_control()) ledger.on_sent();
  EXPECT_EQ(ledger.available(), 1u);
}

TEST(CreditLedger, GivesTheLastCreditOnlyToATransferThatBringsAGrant) {
  CreditLedger ledger(4, 1, 4);
  while (ledger.may_send_control()) ledger.on_sent();
  ASSERT_EQ(ledger.available(), 1u);
  ASSERT_TRUE(ledger.on_received().ok());
  ledger.on_posted(1);
  EXPECT_TRUE(ledger.may_send_control());
  ledger.on_sent();
  ledger.on_grant_sent();
  EXPECT_FALSE(ledger.may_send_control());
}

TEST(CreditLedger, KeepsTheLastCreditFromDataEvenWithoutAReserve) {
  CreditLedger ledger(4, 0, 4);
  while (ledger.may_send_data()) ledger.on_sent();
  EXPECT_EQ(ledger.available(), 1u);
}

TEST(CreditLedger, KeepsTheLastCreditFromCreditMessages) {
  for (const std::uint32_t reserve : {0u, 1u, 2u}) {
    CreditLedger ledger(4, reserve, 4);
    while (ledger.may_send_credit()) ledger.on_sent();
    EXPECT_EQ(ledger.available(), 1u) << reserve;
  }
}

TEST(CreditLedger, RefusesAGrantThatGoesBack) {
  CreditLedger ledger(8, 2, 8);
  for (int i = 0; i < 5; ++i) ledger.on_sent();
  ASSERT_TRUE(ledger.on_granted(12).ok());
  EXPECT_TRUE(ledger.on_granted(12).ok()) << "the same total again is no news and no breach";
  EXPECT_EQ(ledger.on_granted(11).code(), Code::kProtocol);
  EXPECT_EQ(ledger.on_granted(0).code(), Code::kProtocol);
  EXPECT_EQ(ledger.available(), 7u) << "a refused grant changes nothing";
}

TEST(CreditLedger, RefusesAGrantBeyondWhatThePeerCanHavePosted) {
  CreditLedger ledger(8, 2, 8);
  EXPECT_EQ(ledger.on_granted(9).code(), Code::kProtocol) << "nothing was sent yet";
  for (int i = 0; i < 3; ++i) ledger.on_sent();
  EXPECT_TRUE(ledger.on_granted(11).ok());
  EXPECT_EQ(ledger.on_granted(12).code(), Code::kProtocol);
  EXPECT_EQ(ledger.on_granted(0x8000'0000u).code(), Code::kProtocol);
  EXPECT_EQ(ledger.on_granted(0xffff'ffffu).code(), Code::kProtocol);
}

TEST(CreditLedger, JudgesEveryPossibleGrantRightlyAlsoAcrossTheWrap) {
  // Small totals around the wrap, all of them: legal is exactly [granted, sent + window].
  for (std::uint32_t start : {0u, 7u, kNearWrap, 0x7fff'fffeu}) {
    for (std::uint32_t sent = 0; sent <= 6; ++sent) {
      for (std::uint32_t before = 6; before <= 6 + sent; ++before) {
        for (std::uint32_t total = 0; total <= 20; ++total) {
          CreditLedger ledger(6, 1, 6, start);
          for (std::uint32_t i = 0; i < sent; ++i) ledger.on_sent();
          ASSERT_TRUE(ledger.on_granted(start + before).ok());
          const bool legal = total >= before && total <= sent + 6;
          ASSERT_EQ(ledger.on_granted(start + total).ok(), legal)
              << "start " << start << ", sent " << sent << ", before " << before << ", total "
              << total;
        }
      }
    }
  }
}

TEST(CreditLedger, TakesExactlyAsManyTransfersAsItAnnounced) {
  for (std::uint32_t start : {0u, kNearWrap}) {
    CreditLedger ledger(4, 1, 4, start);
    for (int i = 0; i < 4; ++i) ASSERT_TRUE(ledger.on_received().ok());
    EXPECT_EQ(ledger.on_received().code(), Code::kProtocol);
    ledger.on_posted(4);
    EXPECT_EQ(ledger.on_received().code(), Code::kProtocol) << "posted, but the peer cannot know";
    ledger.on_grant_sent();
    EXPECT_TRUE(ledger.on_received().ok());
  }
}

TEST(CreditLedger, OwesAReturnAtHalfTheWindow) {
  CreditLedger ledger(16, 4, 16);
  for (int i = 0; i < 7; ++i) {
    ASSERT_TRUE(ledger.on_received().ok());
    ledger.on_posted(1);
    EXPECT_FALSE(ledger.grant_due()) << i;
  }
  ASSERT_TRUE(ledger.on_received().ok());
  ledger.on_posted(1);
  EXPECT_TRUE(ledger.grant_due());
  EXPECT_EQ(ledger.unannounced(), 8u);
  ledger.on_grant_sent();
  EXPECT_FALSE(ledger.grant_due());
}

TEST(CreditLedger, OwesAReturnEarlierWhenThePeerRunsDryBecauseBuffersAreHeld) {
  CreditLedger ledger(16, 4, 16);
  for (int i = 0; i < 13; ++i) ASSERT_TRUE(ledger.on_received().ok());
  ledger.on_posted(1);  // the other twelve are still in use
  EXPECT_FALSE(ledger.grant_due()) << "a single buffer would be answered for ever";
  ledger.on_posted(1);
  EXPECT_TRUE(ledger.grant_due());
}

TEST(CreditLedgerDeath, PostingMoreThanHelloSaidIsOurOwnBug) {
  CreditLedger ledger(4, 1, 4);
  EXPECT_DEATH(ledger.on_posted(1), "invariant broken");
}

TEST(CreditLedgerDeath, SendingWithoutACreditIsOurOwnBug) {
  CreditLedger ledger(4, 1, 4);
  for (int i = 0; i < 4; ++i) ledger.on_sent();
  EXPECT_DEATH(ledger.on_sent(), "invariant broken");
}

}  // namespace
}  // namespace sanproxy::flow

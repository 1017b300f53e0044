#include "lwproto/fabric/link_parameters.h"

#include "gtest/gtest.h"

namespace sanproxy::fabric {
namespace {

TEST(LinkParameters, EveryParameterIsReadByItsName) {
  const auto link = parse_link(
      "window=4MiB,streams=4,queue_pairs=2,skip_slow_start,congestion=cubic,quality=vbr,"
      "rate=100Mbit,peak=1Gbit,burst=64KiB,dscp=46,priority=6,service_level=3,traffic_class=104");
  ASSERT_TRUE(link.ok()) << link.status().to_string();
  EXPECT_EQ(link->window_bytes, 4u << 20);
  EXPECT_EQ(link->parallel_streams, 4u);
  EXPECT_EQ(link->queue_pairs, 2u);
  EXPECT_TRUE(link->skip_slow_start);
  EXPECT_STREQ(link->congestion.data(), "cubic");
  EXPECT_EQ(link->quality, QualityClass::kVariable);
  EXPECT_EQ(link->rate_bytes_per_s, 12'500'000u);
  EXPECT_EQ(link->peak_bytes_per_s, 125'000'000u);
  EXPECT_EQ(link->burst_bytes, 65'536u);
  EXPECT_EQ(link->dscp, 46);
  EXPECT_EQ(link->priority, 6);
  EXPECT_EQ(link->service_level, 3);
  EXPECT_EQ(link->traffic_class, 104);
  EXPECT_EQ(link_fields(*link), (1u << 13) - 1);
}

TEST(LinkParameters, TheTextOfALinkReadsBackAsTheSameLink) {
  for (const char* text : {"", "window=65536", "streams=8,skip_slow_start", "congestion=reno",
                           "quality=cbr,rate=1MiB,burst=9000", "quality=vbr,rate=5,peak=6,burst=1",
                           "quality=abr,rate=8Kbit", "quality=ubr",
                           "dscp=0,priority=0,service_level=0,traffic_class=0"}) {
    const auto link = parse_link(text);
    ASSERT_TRUE(link.ok()) << text << ": " << link.status().to_string();
    const auto again = parse_link(link_text(*link));
    ASSERT_TRUE(again.ok()) << link_text(*link);
    EXPECT_EQ(*again, *link) << text;
  }
}

TEST(LinkParameters, AFlagIsOnOrOff) {
  for (const char* on : {"skip_slow_start", "skip_slow_start=on", "skip_slow_start=true"}) {
    EXPECT_TRUE(parse_link(on).value().skip_slow_start) << on;
  }
  for (const char* off : {"", "skip_slow_start=off", "skip_slow_start=false"}) {
    EXPECT_FALSE(parse_link(off).value().skip_slow_start) << off;
  }
}

TEST(LinkParameters, AWrongValueIsRefusedWithTheNameOfItsParameter) {
  for (const auto& [text, name] : {
           std::pair{"window=0", "window"},
           {"window=4MB", "window"},
           {"window=-1", "window"},
           {"window", "window"},
           {"window=2GiB", "window"},
           {"window=18446744073709551615GiB", "window"},
           {"streams=65", "streams"},
           {"streams=0", "streams"},
           {"queue_pairs=0", "queue_pairs"},
           {"streams=2,dscp=1,streams=3", "streams is there twice"},
           {"skip_slow_start,skip_slow_start", "skip_slow_start is there twice"},
           {"streams=", "streams"},
           {"queue_pairs=x", "queue_pairs"},
           {"skip_slow_start=maybe", "skip_slow_start"},
           {"congestion=", "congestion"},
           {"congestion=sixteen_letters_", "congestion"},
           {"congestion=Cubic!", "congestion"},
           {"quality=best", "quality"},
           {"quality=cbr", "rate"},
           {"rate=1Mbit", "rate"},
           {"quality=vbr,rate=2Mbit,burst=1", "peak"},
           {"quality=vbr,rate=2Mbit,peak=1Mbit,burst=1", "peak"},
           {"quality=cbr,rate=2Mbit,peak=3Mbit", "peak"},
           {"quality=vbr,rate=2Mbit,peak=3Mbit", "burst"},
           {"quality=abr,rate=2Mbit,burst=1", "burst"},
           {"quality=cbr,rate=1025GiB", "rate"},
           {"quality=abr,rate=18446744073709551615", "rate"},
           {"quality=vbr,rate=1,peak=1099511627777,burst=1", "peak"},
           {"quality=vbr,rate=1,peak=1,burst=1099511627777", "burst"},
           {"quality=vbr,rate=1,peak=1,burst=9223372036854775808", "burst"},
           {"dscp=64", "dscp"},
           {"priority=7", "priority"},
           {"service_level=16", "service_level"},
           {"traffic_class=256", "traffic_class"},
           {"windows=1", "unknown"},
       }) {
    const auto link = parse_link(text);
    ASSERT_FALSE(link.ok()) << text;
    EXPECT_EQ(link.status().code(), Code::kInvalidArgument) << text;
    EXPECT_NE(std::string(link.status().text()).find(name), std::string::npos)
        << text << ": " << link.status().text();
  }
}

TEST(LinkParameters, WhatAFabricCannotHonourIsNamed) {
  const auto link = parse_link("window=4MiB,streams=4,dscp=46");
  ASSERT_TRUE(link.ok());
  EXPECT_TRUE(require_link(*link, kLinkWindow | kLinkStreams | kLinkDscp).ok());
  EXPECT_TRUE(require_link({}, 0).ok());
  const Status status = require_link(*link, kLinkWindow | kLinkDscp);
  EXPECT_EQ(status.code(), Code::kUnsupported);
  EXPECT_NE(std::string(status.text()).find("streams"), std::string::npos) << status.text();
}

}  // namespace
}  // namespace sanproxy::fabric

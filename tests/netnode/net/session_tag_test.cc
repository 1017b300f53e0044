#include "netnode/net/session_tag.h"

#include <gtest/gtest.h>

#include <array>

namespace sanproxy::net {
namespace {

using Header = std::array<std::uint8_t, 60>;

TEST(SessionTag, ComesBackOutOfTheTimestampThatCarriesIt) {
  for (std::uint32_t tag = 0; tag <= kSessionTagMax; ++tag) {
    EXPECT_EQ(session_tag_of(tagged_timestamp(1'700'000'000, static_cast<std::uint16_t>(tag))),
              tag);
  }
}

TEST(SessionTag, TimestampsOfAProxyNeverGoBack) {
  std::uint32_t last = tagged_timestamp(0, 1023);
  for (std::uint64_t s = 1; s < 10'000'000; s += 997) {
    const std::uint32_t now = tagged_timestamp(s, 1023);
    EXPECT_GT(static_cast<std::int32_t>(now - last), 0) << s;  // as PAWS compares, wrap included
    last = now;
  }
}

TEST(SessionTag, IsFoundInThePlainOrderOfOptionsAndInAnyOther) {
  Header plain{};
  store_be32(plain.data() + 20, 0x0101080a);
  store_be32(plain.data() + 28, tagged_timestamp(5, 77));
  EXPECT_EQ(echoed_session_tag(plain.data(), 32), 77);
  Header other{};
  const std::uint8_t options[] = {2, 4, 5, 180, 4, 2, 8, 10};  // MSS, SACK permitted, timestamps
  std::copy(std::begin(options), std::end(options), other.begin() + 20);
  store_be32(other.data() + 32, tagged_timestamp(5, 78));
  EXPECT_EQ(echoed_session_tag(other.data(), 36), 78);
}

TEST(SessionTag, IsNoneWithoutTimestampsAndWithMalformedOptions) {
  Header bare{};
  EXPECT_EQ(echoed_session_tag(bare.data(), 20), kSessionTagNone);
  EXPECT_EQ(echoed_session_tag(bare.data(), 40), kSessionTagNone);  // ends at once
  for (const int length : {0, 1, 41}) {
    Header bad{};
    bad[20] = 254;
    bad[21] = static_cast<std::uint8_t>(length);
    EXPECT_EQ(echoed_session_tag(bad.data(), 60), kSessionTagNone) << length;
  }
  Header wrong_length{};
  wrong_length[20] = kTcpOptionTimestamps;
  wrong_length[21] = 8;
  EXPECT_EQ(echoed_session_tag(wrong_length.data(), 60), kSessionTagNone);
  Header cut{};
  for (std::size_t i = 20; i < 23; ++i) cut[i] = kTcpOptionNop;
  cut[23] = kTcpOptionTimestamps;  // the kind alone is inside
  EXPECT_EQ(echoed_session_tag(cut.data(), 24), kSessionTagNone);
}

}  // namespace
}  // namespace sanproxy::net

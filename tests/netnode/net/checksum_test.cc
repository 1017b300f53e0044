#include "netnode/net/checksum.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/netnode/net/packet_builder.h"

namespace sanproxy::net {
namespace {

using testing::Bytes;

// RFC 1071 4.1, word by word.
std::uint16_t plain_sum(const Bytes& bytes) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < bytes.size(); i += 2) {
    const std::uint32_t low = i + 1 < bytes.size() ? bytes[i + 1] : 0;
    sum += (std::uint32_t{bytes[i]} << 8) + low;
    sum = (sum & 0xffff) + (sum >> 16);
  }
  return static_cast<std::uint16_t>(sum);
}

TEST(Checksum, MatchesTheExampleOfRfc1071) {
  const Bytes bytes = {0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7};
  EXPECT_EQ(__builtin_bswap16(fold(sum_bytes(bytes.data(), bytes.size()))), 0xddf2);
}

TEST(Checksum, MatchesThePlainDefinitionForEveryLengthAndAlignment) {
  std::mt19937 random(1);
  Bytes pool(400);
  for (auto& byte : pool) {
    byte = static_cast<std::uint8_t>(random());
  }
  for (std::size_t start = 0; start < 9; ++start) {
    for (std::size_t length = 0; length < 300; ++length) {
      const Bytes bytes(pool.begin() + static_cast<long>(start),
                        pool.begin() + static_cast<long>(start + length));
      ASSERT_EQ(__builtin_bswap16(fold(sum_bytes(pool.data() + start, length))), plain_sum(bytes))
          << "start " << start << " length " << length;
    }
  }
}

TEST(Checksum, CarriesOfAllOnesAreNotLost) {
  for (std::size_t length : {2U, 8U, 32U, 64U, 100U, 65534U}) {
    const Bytes bytes(length, 0xff);
    EXPECT_EQ(fold(sum_bytes(bytes.data(), length)), 0xffff) << length;
  }
}

TEST(Checksum, IncrementalUpdateEqualsFullSum) {
  std::mt19937 random(2);
  for (int round = 0; round < 20'000; ++round) {
    Bytes header(20);
    for (auto& byte : header) {
      byte = static_cast<std::uint8_t>(random() % 5 == 0 ? 0xff : random() % 5 == 0 ? 0 : random());
    }
    header[0] = 0x45;  // never all zero: the one case in which RFC 1624 leaves two answers
    store_raw16(header.data() + 10, 0);
    const std::uint16_t before = finish(sum_bytes(header.data(), 20));
    const std::uint16_t old16 = load_raw16(header.data() + 8);
    const std::uint32_t old32 = load_raw32(header.data() + 12);
    const auto new16 = static_cast<std::uint16_t>(random());
    const auto new32 = static_cast<std::uint32_t>(random());
    store_raw16(header.data() + 8, new16);
    std::memcpy(header.data() + 12, &new32, 4);
    const std::uint16_t updated = update32(update16(before, old16, new16), old32, new32);
    ASSERT_EQ(updated, finish(sum_bytes(header.data(), 20)));
  }
}

TEST(Checksum, PseudoHeaderSumEqualsSumOverThePseudoHeader) {
  const Bytes v4 = testing::ipv4(6, testing::tcp(5));
  Bytes pseudo(v4.begin() + 12, v4.begin() + 20);
  testing::append(pseudo, {0, 6, 0, 25});
  EXPECT_EQ(fold(pseudo_header_sum(Family::kIpv4, v4.data() + 12, v4.data() + 16, 6, 25)),
            fold(sum_bytes(pseudo.data(), pseudo.size())));
  const Bytes v6 = testing::ipv6(6, testing::tcp(5));
  Bytes pseudo6(v6.begin() + 8, v6.begin() + 40);
  testing::append(pseudo6, {0, 1, 0x02, 0x03, 0, 0, 0, 58});
  EXPECT_EQ(fold(pseudo_header_sum(Family::kIpv6, v6.data() + 8, v6.data() + 24, 58, 0x10203)),
            fold(sum_bytes(pseudo6.data(), pseudo6.size())));
}

}  // namespace
}  // namespace sanproxy::net

// Feeds mutated transfers to TransferReader and compares every verdict and every byte yielded
// with the slow checker. The seed is fixed, so a failure is found again by its round.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "lwproto/wire/codec.h"
#include "tests/lwproto/base/sanitized.h"
#include "tests/lwproto/wire/slow_checker.h"

namespace sanproxy::wire {
namespace {

constexpr std::size_t kRounds = 1'000'000 / test::kSanitizedShare;
constexpr std::size_t kShortRounds = kRounds / 4;
constexpr std::uint64_t kSeed = 20240607;

class Mutator {
 public:
  // A transfer of legal messages, mostly small; then a few of its bytes are changed.
  void make() {
    space_.resize(kTransferInlineBytesMax);
    TransferWriter writer(space_);
    const std::size_t count = pick(5) + (pick(50) == 0 ? 200 : 0);
    for (std::size_t i = 0; i < count; ++i) append_one(writer);
    std::size_t referenced = 0;
    if (pick(3) == 0) {
      referenced = 1025 + pick(pick(20) == 0 ? 64512 : 64);
      if (!writer.append_data_header(some_id(), pick(1000), static_cast<std::uint32_t>(referenced)))
        referenced = 0;
    }
    space_.resize(writer.finish(static_cast<std::uint32_t>(random_())));
    rest_bytes_ = 0;
    if (pick(2) == 0) {
      rest_bytes_ = referenced;
    } else {
      space_.resize(space_.size() + referenced);
    }
    for (std::size_t n = pick(4); n > 0; --n) mutate();
  }
  std::span<const std::byte> head() const { return space_; }
  std::size_t rest_bytes() const { return rest_bytes_; }

 private:
  std::size_t pick(std::size_t bound) { return random_() % bound; }
  std::uint64_t some_id() { return pick(100) == 0 ? 0 : random_(); }
  std::uint32_t small() { return static_cast<std::uint32_t>(pick(4)); }

  WireAddress some_address() {
    WireAddress out{};
    out.family = pick(2) == 0 ? 4 : 6;
    out.ip[pick(4)] = 10;
    out.port = static_cast<std::uint16_t>(1 + pick(9));
    return out;
  }

  void append_one(TransferWriter& writer) {
    const auto flag = static_cast<std::uint8_t>(1u << pick(3));
    const auto flags = pick(2) == 0 ? std::uint8_t{0} : flag;
    const auto code = static_cast<CloseCode>(pick(2) == 0 ? 0 : pick(17));
    switch (pick(13)) {
      case 0:
        (void)writer.append(MessageType::kJoinService, flags, code,
                            JoinServiceBody{some_address(), small(), flags & 1u, 1, 0});
        break;
      case 1:
        (void)writer.append(
            pick(2) == 0 ? MessageType::kLeaveService : MessageType::kShutdownService, flags & 1u,
            code, ServiceBody{1 + small(), small() / 2});
        break;
      case 2: {
        ConnectionRequestBody body{};
        const bool active = pick(2) == 0;
        body.connection = active ? 0 : some_id();
        body.service = active ? 0 : 1;
        body.request = active ? 1 + small() : 0;
        body.client = some_address();
        if (!active || pick(2) == 0) body.local = body.client;
        body.send_window_bytes = 1 + small();
        if (!active) body.mss_bytes = 1460;
        (void)writer.append(MessageType::kConnectionRequest, active ? kFlagActive : std::uint8_t{0},
                            CloseCode::kNone, body);
        break;
      }
      case 3: {
        AcceptConnectionBody body{};
        body.connection = some_id();
        body.send_window_bytes = 1 + small();
        if (pick(2) == 0) {
          body.request = 1;
          body.local = some_address();
        }
        (void)writer.append(MessageType::kAcceptConnection, 0, CloseCode::kNone, body);
        break;
      }
      case 4:
        (void)writer.append(MessageType::kRejectConnection, 0, static_cast<CloseCode>(3 + pick(3)),
                            RejectConnectionBody{pick(2), small() / 2, 0});
        break;
      case 5:
        (void)writer.append(MessageType::kCloseConnection, 0, static_cast<CloseCode>(1 + pick(3)),
                            CloseConnectionBody{some_id(), random_()});
        break;
      case 6:
        (void)writer.append(MessageType::kCredit, 0, CloseCode::kNone,
                            CreditBody{some_id(), pick(1000) + 1000, pick(1100)});
        break;
      case 7: {
        const std::vector<std::byte> text(pick(20), std::byte{'t'});
        const ErrorBody body{0, static_cast<std::uint32_t>(text.size())};
        (void)writer.append(MessageType::kError, 0, CloseCode::kProtocolError, &body, sizeof(body),
                            text);
        break;
      }
      case 8: {
        AuthenticateBody body{};
        const std::size_t name_bytes = pick(8) == 0 ? 32 : pick(6);
        std::memset(body.key_name, pick(9) == 0 ? '/' : 'k', name_bytes);
        if (code == CloseCode::kNone) body.proof[pick(32)] = 7;
        (void)writer.append(MessageType::kAuthenticate, flags & 1u, code, body);
        break;
      }
      case 9: {
        const std::vector<std::byte> bytes(20 + pick(60), std::byte{0x45});
        PacketBody body{};
        const auto packet_flags = static_cast<std::uint8_t>(pick(20));
        if ((packet_flags & kFlagChecksumPartial) != 0) {
          body.checksum_start = static_cast<std::uint16_t>(pick(70));
          body.checksum_offset = 16;
        }
        if (pick(2) == 0) {
          body.segmentation = static_cast<std::uint8_t>(pick(5));
          body.segment_bytes = static_cast<std::uint16_t>(pick(2) * 1448);
          body.header_bytes = static_cast<std::uint16_t>(pick(70));
        }
        (void)writer.append_packet(packet_flags, body, bytes);
        break;
      }
      case 11:
        (void)writer.append(MessageType::kHeartbeat, flags & 1u, CloseCode::kNone,
                            HeartbeatBody{small(), small() / 2});
        break;
      case 10:
        (void)writer.append(MessageType::kNodeStatus, flags & 1u, CloseCode::kNone,
                            NodeStatusBody{small(), static_cast<std::uint16_t>(pick(1100)), 0});
        break;
      default: {
        const std::vector<std::byte> payload(1 + pick(pick(10) == 0 ? 1024 : 40), std::byte{'d'});
        (void)writer.append_data(some_id(), random_(), payload);
      }
    }
  }

  void mutate() {
    switch (pick(7)) {
      case 0:  // a bit
        if (!space_.empty()) space_[pick(space_.size())] ^= std::byte{1} << pick(8);
        break;
      case 1:  // a byte near the front, where the headers are
        if (!space_.empty()) {
          space_[pick(std::min<std::size_t>(space_.size(), 64))] =
              static_cast<std::byte>(pick(256));
        }
        break;
      case 2: {  // a word
        const std::size_t at = pick(space_.size() / 4 + 1) * 4;
        const std::uint32_t words[] = {0, 1, 0xffff'ffffu, 0x8000'0000u, 24, 25, 1048, 1049, 65560};
        if (at + 4 <= space_.size()) std::memcpy(space_.data() + at, &words[pick(9)], 4);
        break;
      }
      case 3:  // cut or grown
      case 4:
        space_.resize(pick(2) == 0 ? pick(space_.size() + 1) : space_.size() + pick(40));
        break;
      case 5:  // bytes that move between the segments
        rest_bytes_ = pick(2) == 0 ? 0 : pick(3000);
        break;
      default:  // a piece copied over another
        if (space_.size() >= 32) {
          const std::size_t bytes = 1 + pick(16);
          std::memmove(space_.data() + pick(space_.size() - bytes),
                       space_.data() + pick(space_.size() - bytes), bytes);
        }
    }
  }

  std::mt19937_64 random_{kSeed};
  std::vector<std::byte> space_;
  std::size_t rest_bytes_ = 0;
};

// The reader's answer must be the slow checker's, message for message.
testing::AssertionResult agrees(std::span<const std::byte> head, std::size_t rest_bytes,
                                std::size_t& yielded) {
  const slow::Verdict verdict =
      slow::check({reinterpret_cast<const std::uint8_t*>(head.data()), head.size()}, rest_bytes);
  TransferReader reader(head, rest_bytes);
  const auto header = reader.begin();
  Status status = header.status();
  std::size_t count = 0;
  Message message;
  while (status.ok()) {
    status = reader.next(message);
    if (!status.ok()) break;
    if (count == verdict.messages.size()) {
      return testing::AssertionFailure() << "yielded an illegal message: " << verdict.broken;
    }
    const slow::Reading& expected = verdict.messages[count++];
    const bool same_head =
        static_cast<std::uint8_t>(message.type) == expected.type &&
        message.flags == expected.flags &&
        static_cast<std::uint16_t>(message.code) == expected.code &&
        std::memcmp(&message.hello, expected.body.data(), expected.body.size()) == 0;
    const bool same_payload = message.payload_bytes == expected.payload_bytes &&
                              message.referenced == expected.in_rest &&
                              (expected.in_rest || expected.payload_bytes == 0
                                   ? message.payload.empty()
                                   : message.payload.data() == head.data() + expected.payload_at &&
                                         message.payload.size() == expected.payload_bytes);
    if (!same_head || !same_payload) {
      return testing::AssertionFailure() << "yielded message " << count - 1 << " wrongly";
    }
  }
  yielded += count;
  const bool orderly = status.code() == Code::kNotFound;
  if (orderly != verdict.broken.empty() || count != verdict.messages.size()) {
    return testing::AssertionFailure()
           << "reader: " << status.to_string() << " after " << count
           << ", checker: " << (verdict.broken.empty() ? "legal" : verdict.broken) << " after "
           << verdict.messages.size();
  }
  return testing::AssertionSuccess();
}

// The short way takes exactly those transfers that are legal and one DATA with its payload inside.
testing::AssertionResult short_way_agrees(std::span<const std::byte> bytes, std::size_t& taken) {
  const slow::Verdict verdict =
      slow::check({reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()}, 0);
  const bool fits = verdict.broken.empty() && verdict.messages.size() == 1 &&
                    verdict.messages[0].type == static_cast<std::uint8_t>(MessageType::kData) &&
                    verdict.messages[0].payload_bytes <= kInlinePayloadBytesMax;
  OneData one;
  if (one.read(bytes) != fits) {
    return testing::AssertionFailure() << (fits ? "not taken" : "taken: ") << verdict.broken;
  }
  if (!fits) return testing::AssertionSuccess();
  ++taken;
  const slow::Reading& expected = verdict.messages[0];
  const bool same = std::memcmp(&one.transfer, bytes.data(), sizeof(one.transfer)) == 0 &&
                    std::memcmp(&one.data, expected.body.data(), sizeof(one.data)) == 0 &&
                    one.payload.data() == bytes.data() + expected.payload_at &&
                    one.payload.size() == expected.payload_bytes;
  return same ? testing::AssertionSuccess() : testing::AssertionFailure() << "read wrongly";
}

TEST(CodecFuzz, TheShortWayTakesWhatTheSlowCheckerSaysIsOneSmallData) {
  std::mt19937_64 random{kSeed};
  const std::vector<std::byte> payload(kInlinePayloadBytesMax, std::byte{0x5a});
  std::size_t taken = 0;
  for (std::size_t round = 0; round < kShortRounds; ++round) {
    std::vector<std::byte> space(kTransferInlineBytesMax);
    TransferWriter writer(space);
    const std::size_t bytes = 1 + random() % (random() % 4 == 0 ? payload.size() : 20);
    ASSERT_TRUE(writer.append_data(random() % 9, random(), std::span(payload).first(bytes)));
    if (random() % 9 == 0) {
      ASSERT_TRUE(writer.append_data(1, 0, std::span(payload).first(1)));
    }
    space.resize(writer.finish(static_cast<std::uint32_t>(random())));
    for (std::size_t n = random() % 3; n > 0; --n) {
      // Mostly headers and padding: of a payload everything is legal.
      const std::size_t at = random() % 2 == 0 ? random() % 32 : space.size() - 1 - random() % 8;
      space[at] ^= static_cast<std::byte>(1u << random() % 8);
    }
    if (random() % 9 == 0) space.resize(random() % (space.size() + 16));
    const auto exact = std::make_unique<std::byte[]>(space.size());
    std::copy(space.begin(), space.end(), exact.get());
    ASSERT_TRUE(short_way_agrees({exact.get(), space.size()}, taken)) << "round " << round;
  }
  EXPECT_GT(taken, kShortRounds / 5);
  EXPECT_LT(taken, kShortRounds);
}

TEST(CodecFuzz, MutatedTransfersAreJudgedAsTheSlowCheckerJudgesThem) {
  Mutator mutator;
  std::size_t legal = 0;
  std::size_t yielded = 0;
  for (std::size_t round = 0; round < kRounds; ++round) {
    mutator.make();
    // In an allocation of its own size: a read beyond it is seen by the address sanitizer.
    const std::size_t size = mutator.head().size();
    const auto exact = std::make_unique<std::byte[]>(size);
    std::memcpy(exact.get(), mutator.head().data(), size);
    const std::size_t before = yielded;
    ASSERT_TRUE(agrees({exact.get(), size}, mutator.rest_bytes(), yielded)) << "round " << round;
    legal += yielded > before ? 1 : 0;
  }
  // The mutations must leave enough alive for the comparison to mean something.
  EXPECT_GT(legal, kRounds / 5);
  EXPECT_LT(legal, kRounds);
  EXPECT_GT(yielded, kRounds / 2);
}

}  // namespace
}  // namespace sanproxy::wire

// The messages by which a channel over TCP is set up.
//
// Document: docs/tcp_fabric.md "Handshake".
// Role: the one definition of their format, and what makes them good. Everything is little-endian.
// Thread: values.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "lwproto/base/status.h"
#include "lwproto/fabric/fabric.h"
#include "lwproto/fabric/tcp/link_settings.h"

namespace sanproxy::fabric::tcp {

inline constexpr std::uint64_t kMagic = 0x31305043'544e4153ull;  // "SANTCP01"
inline constexpr std::uint16_t kVersion = 1;
inline constexpr std::uint32_t kInlineBytesMax = 1u << 20;
inline constexpr std::uint32_t kTransferBytesMax = 1u << 26;
inline constexpr std::uint32_t kReceiveDepthMax = 1u << 20;

enum class MessageType : std::uint8_t { kHello = 1, kJoin = 2, kWelcome = 3, kAnswer = 4 };

enum class Verdict : std::uint32_t {
  kAccepted = 0,
  kRejected = 1,  // by the owner
  kBadVersion = 2,
  kBadHello = 3,
  kBadLink = 4,  // `parameter` is the LinkField, 0 if several
  kTlsRequired = 5,
  kNoRoom = 6,
};

struct Preamble {
  std::uint64_t magic = kMagic;
  std::uint16_t version = kVersion;
  MessageType type = MessageType::kHello;
  std::uint8_t reserved = 0;
  std::uint32_t body_bytes = 0;  // with the private data
};
static_assert(sizeof(Preamble) == 16);

// What a side takes. Both must take what the other sends.
struct Sizes {
  std::uint32_t inline_bytes_max = 0;
  std::uint32_t transfer_bytes_max = 0;
  std::uint32_t regions_max = 0;
  std::uint32_t reserved = 0;
  std::uint64_t region_bytes_max = 0;
};
static_assert(sizeof(Sizes) == 24);

struct LinkBody {
  std::uint64_t window_bytes = 0;
  std::uint64_t rate_bytes_per_s = 0;
  std::uint64_t peak_bytes_per_s = 0;
  std::uint64_t burst_bytes = 0;
  std::array<char, 16> congestion = {};
  std::uint8_t skip_slow_start = 0;
  QualityClass quality = QualityClass::kNone;
  std::int8_t dscp = -1;
  std::int8_t priority = -1;
  std::uint32_t streams = 1;
};
static_assert(sizeof(LinkBody) == 56);

struct HelloBody {
  Sizes sizes;
  LinkBody link;
};
static_assert(sizeof(HelloBody) == 80);

using Token = std::array<std::byte, 16>;

struct WelcomeBody {
  Token token = {};
};

struct JoinBody {
  Token token = {};
  std::uint32_t stream = 0;  // 1 .. streams - 1
  std::uint32_t reserved = 0;
};
static_assert(sizeof(JoinBody) == 24);

struct AnswerBody {
  Verdict verdict = Verdict::kAccepted;
  std::uint32_t parameter = 0;
  Sizes sizes;
};
static_assert(sizeof(AnswerBody) == 32);

inline constexpr std::size_t kBodyBytesMax = sizeof(HelloBody) + kPrivateDataBytesMax;

// Those of a whole handshake, with TLS and further connections, come on top of
// handshake_timeout_ms.
inline constexpr std::uint64_t kHandshakeRoundTrips = 8;

Sizes make_sizes(const EndpointOptions& options);
// Of our own options, when an endpoint is asked for.
Status check_options(const EndpointOptions& options);
// Whether a peer with these sizes takes what we send, and we what it sends.
bool sizes_fit(const Sizes& ours, const Sizes& theirs);

LinkBody to_wire(const LinkParameters& link, std::uint32_t streams);
LinkParameters from_wire(const LinkBody& body);

}  // namespace sanproxy::fabric::tcp

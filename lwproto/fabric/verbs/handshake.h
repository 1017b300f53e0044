// Handshake: the bytes that two ends of a verbs channel exchange before data flows.
//
// Document: docs/verbs_fabric.md "Handshake".
// Role: encodes and checks them; pure, no I/O. CmHeader travels in the private data of the
//   connection manager (56 bytes at most), Hello and Answer are the first SEND each way.
// Thread: values.
// Invariants:
//   1. All numbers are little-endian on the wire, whatever the host.
//   2. Bytes from a peer are copied before they are looked at, and each broken rule is a Status.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "lwproto/base/status.h"
#include "lwproto/fabric/fabric.h"
#include "lwproto/fabric/link_parameters.h"

namespace sanproxy::fabric::verbs {

inline constexpr std::uint32_t kMagic = 0x7662'6e73;
inline constexpr std::uint16_t kVersion = 2;
inline constexpr std::size_t kCmBytesMax = 56;  // what RDMA_PS_TCP leaves to us

// What a SEND is, and one number: its immediate data. Most are inline, and have none.
enum class Kind : std::uint8_t {
  kInline = 0,      // nothing but an inline part; never in immediate data
  kHello = 1,       // the number: 0
  kAccept = 2,      // 0
  kReject = 3,      // a LinkField, or 0
  kReferenced = 4,  // the length of the inline part; what follows it was sent from regions
  kBye = 5,         // a ByeCode; the last transfer
};
enum class ByeCode : std::uint8_t { kClosed = 0, kProtocol = 1 };

constexpr std::uint32_t make_immediate(Kind kind, std::uint32_t number) {
  return (static_cast<std::uint32_t>(kind) << 24) | (number & 0xff'ffffu);
}
constexpr Kind kind_of(std::uint32_t immediate) { return static_cast<Kind>(immediate >> 24); }
constexpr std::uint32_t number_of(std::uint32_t immediate) { return immediate & 0xff'ffffu; }
// Of immediate data that say nothing which they may.
inline constexpr std::uint32_t kNoKind = 0xffff'ffffu;
inline constexpr std::uint32_t kInlineBytesLimit = 0xff'ffffu;

// Why the connection manager says no.
enum class Verdict : std::uint16_t {
  kNone = 0,
  kBadHeader = 1,
  kBadVersion = 2,
  kBadSizes = 3,
  kBusy = 4,
  kQueuePairs = 5  // no queue pair more for this channel, or no such channel
};

// What ties the queue pairs of one channel together: chosen at random by the listening side for
// each channel, told to the peer with the reply to its first queue pair, and shown with each
// further one.
struct ChannelToken {
  std::array<std::byte, 16> bytes{};

  bool operator==(const ChannelToken&) const = default;
};
Result<ChannelToken> make_channel_token();
// In a time that does not tell where two tokens differ; never true for a token of zeros.
bool same_channel(const ChannelToken& a, const ChannelToken& b);

// With the request of the connecting side and the reply or rejection of the listening side.
struct CmHeader {
  Verdict verdict = Verdict::kNone;
  std::uint32_t receive_depth = 0;
  std::uint32_t inline_bytes_max = 0;
  std::uint32_t transfer_bytes_max = 0;
  // The listening side's queue pair is made before the HELLO comes and needs these.
  std::int8_t service_level = -1;
  std::int16_t traffic_class = -1;
  std::uint8_t queue_pairs = 1;  // of the channel
  std::uint8_t queue_pair = 0;   // which of them this connection is
  ChannelToken token;            // zeros with the request of the first

  bool operator==(const CmHeader&) const = default;
};
inline constexpr std::size_t kCmHeaderBytes = 44;
// Of a peer that knows nothing of more than one queue pair.
inline constexpr std::size_t kCmHeaderBytesMin = 24;
static_assert(kCmHeaderBytes <= kCmBytesMax);

std::array<std::byte, kCmHeaderBytes> encode(const CmHeader& header);
// kProtocol for another protocol or impossible values, kUnsupported for another version. Bytes
// behind the header are padding of the connection manager's; what a short one leaves out is zeros.
Result<CmHeader> decode_cm_header(std::span<const std::byte> bytes);

// What this fabric honours (LinkField).
inline constexpr std::uint32_t kHonoured = kLinkWindow | kLinkQueuePairs | kLinkQuality |
                                           kLinkRate | kLinkPeak | kLinkBurst | kLinkDscp |
                                           kLinkServiceLevel | kLinkTrafficClass;
// kInvalidArgument or kUnsupported, with the name of the parameter in the text.
Status check_asked_link(const LinkParameters& link);
// The same as one bit (LinkField) for the wire, or 0; and what the other side makes of that bit.
std::uint32_t refused_field(const LinkParameters& link);
Status field_refused_by_peer(std::uint32_t field);
// The traffic class that `link` asks for by dscp, traffic_class or quality; -1 for none.
std::int16_t traffic_class_of(const LinkParameters& link);

struct Hello {
  LinkParameters link;
  std::vector<std::byte> private_data;
};
inline constexpr std::size_t kHelloHeaderBytes = 48;
inline constexpr std::size_t kAnswerHeaderBytes = 8;
// No SEND of a handshake is longer.
inline constexpr std::size_t kHandshakeBytesMax = kHelloHeaderBytes + kPrivateDataBytesMax;

// Both return the number of bytes written. Precondition: `out` holds kHandshakeBytesMax and
// `private_data` at most kPrivateDataBytesMax bytes.
std::size_t encode_hello(const LinkParameters& link, std::span<const std::byte> private_data,
                         std::span<std::byte> out);
Result<Hello> decode_hello(std::span<const std::byte> bytes);
std::size_t encode_answer(std::span<const std::byte> private_data, std::span<std::byte> out);
Result<std::vector<std::byte>> decode_answer(std::span<const std::byte> bytes);

}  // namespace sanproxy::fabric::verbs

// The lightweight protocol's bytes: constants and structures, exactly as they travel.
//
// Document: docs/wire_format.md (this file and that page match; change both in one commit).
// Role: the vocabulary of codec.h. Everything is little-endian and naturally aligned, so a
//   structure is copied with memcpy; it is never used in place in memory that a peer can write.
// Thread: values.
//
// A *transfer* is what one post on a fabric carries: a TransferHeader, then messages packed one
// behind the other, each padded with zeros to 8 bytes. Every transfer uses one credit. A DATA
// message whose payload travels by reference is always the last message of its transfer: its
// payload makes up the rest of the transfer, without padding.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sanproxy::wire {

inline constexpr std::uint32_t kMagic = 0x70'58'4e'53;  // "SNXp"
inline constexpr std::uint16_t kVersion = 2;
inline constexpr std::size_t kAlignment = 8;
// A DATA payload up to this many bytes may ride inside the transfer's own bytes; a larger one
// travels by reference.
inline constexpr std::size_t kInlinePayloadBytesMax = 1024;
// No DATA message carries more (one super-packet's payload).
inline constexpr std::size_t kDataPayloadBytesMax = 65536;
// The inline part of a transfer (header, messages, inline payloads) never exceeds this.
inline constexpr std::size_t kTransferInlineBytesMax = 8192;
inline constexpr std::size_t kNodeNameBytesMax = 64;
inline constexpr std::uint16_t kWorkersMax = 64;
inline constexpr std::size_t kErrorTextBytesMax = 256;
inline constexpr std::size_t kNonceBytes = 32;
inline constexpr std::size_t kKeyNameBytesMax = 32;
inline constexpr std::size_t kProofBytes = 32;  // HMAC-SHA-256
// The longest transfer: a full inline part and one referenced payload.
inline constexpr std::size_t kTransferBytesMax = kTransferInlineBytesMax + kDataPayloadBytesMax;
// Limits of what HELLO and the windows may name, so that no sum of them overflows anywhere.
inline constexpr std::uint32_t kCreditsMin = 4;
inline constexpr std::uint32_t kCreditsMax = 65536;
inline constexpr std::uint32_t kStreamWindowBytesMax = 1u << 30;
inline constexpr std::uint32_t kStreamsMax = 1u << 24;
inline constexpr std::uint8_t kWindowScaleMax = 14;         // RFC 7323, 2.3
inline constexpr std::uint32_t kTcpOptionTimestamps = 0x1;  // bits of tcp_options
inline constexpr std::uint32_t kTcpOptionSack = 0x2;
inline constexpr std::uint32_t kTcpOptionScaling = 0x4;
inline constexpr std::uint32_t kTcpOptionsKnown = 0x7;

enum class MessageType : std::uint8_t {
  kHello = 1,
  kJoinService = 2,
  kLeaveService = 3,
  kShutdownService = 4,
  kConnectionRequest = 5,
  kAcceptConnection = 6,
  kRejectConnection = 7,
  kData = 8,
  kCloseConnection = 9,
  kCredit = 10,
  kError = 11,
  kAuthenticate = 12,
  kPacket = 13,      // channels of network nodes only
  kNodeStatus = 14,  // likewise
  kHeartbeat = 15,
};

// Why a stream, a join or a channel ended. One list for REJECT, CLOSE, JOIN answers and ERROR.
enum class CloseCode : std::uint16_t {
  kNone = 0,
  kFin = 1,               // this direction ends in order (half-close)
  kFinBoth = 2,           // the application is done with both directions (orderly close)
  kReset = 3,             // RST: either side gave up at once
  kRefused = 4,           // nobody accepts, or the remote refused an outgoing connection
  kTimedOut = 5,          // TCP gave up: retransmissions or keepalive
  kNodeDied = 6,          // the application node went away
  kProxyShutdown = 7,     // the proxy node is shutting down
  kServiceShutdown = 8,   // the service was shut down
  kLimitReached = 9,      // a configured limit (connections, services, nodes, memory)
  kNotPermitted = 10,     // policy does not allow this join or connection
  kNotFound = 11,         // unknown service or connection
  kProtocolError = 12,    // malformed or out-of-contract message
  kVersionMismatch = 13,  // no common version
  kUnreachable = 14,      // no route or no answer for an outgoing connection
  kAddressInUse = 15,
};

// Its length and its place among the others are the fabric's to know.
struct TransferHeader {
  std::uint32_t credits_granted;  // receive buffers posted by the sender since HELLO, mod 2^32
  std::uint16_t message_count;    // messages that follow; 0 is a pure credit return
  std::uint16_t reserved;         // 0
};
static_assert(sizeof(TransferHeader) == 8);

struct MessageHeader {
  std::uint8_t type;     // MessageType
  std::uint8_t flags;    // per type; unknown bits must be 0
  std::uint16_t code;    // CloseCode where the type has one, else 0
  std::uint32_t length;  // header, body and payload; without the padding
};
static_assert(sizeof(MessageHeader) == 8);

struct WireAddress {
  std::uint8_t ip[16];  // network order; IPv4 in the first four bytes, the rest 0
  std::uint16_t port;   // host value, little-endian like everything else
  std::uint8_t family;  // 4 or 6 (0 only where a field is documented as optional)
  std::uint8_t reserved[5];
};
static_assert(sizeof(WireAddress) == 24);

// What the node at the other end of a proxy's channel is: both ends' HELLO say the same.
enum class Role : std::uint8_t { kApplicationNode = 0, kNetworkNode = 1 };

// HELLO travels as the private data of the fabric's connection set-up, once each way.
struct HelloBody {
  std::uint32_t magic;
  std::uint16_t version;
  std::uint8_t role;                  // Role
  std::uint8_t workers;               // a proxy's, at this and the addresses behind it; 0 is 1
  std::uint64_t epoch;                // the sender's incarnation; a proxy's is in connection ids
  std::uint32_t credits_initial;      // receive buffers that the sender has posted
  std::uint32_t credits_reserved;     // of these, kept for control messages
  std::uint32_t stream_window_bytes;  // the largest window that the sender opens for one stream
  std::uint32_t streams_max;
  std::uint8_t node_name[kNodeNameBytesMax];  // UTF-8, zero-padded, printable
  std::uint8_t nonce[kNonceBytes];            // random, fresh for each channel
};
static_assert(sizeof(HelloBody) == 128);

// Flags: kFlagAnswer on JOIN, LEAVE, SHUTDOWN, AUTHENTICATE and HEARTBEAT; kFlagActive on
// CONNECTION_REQUEST; kFlagImmediate on a JOIN that is no answer; those of PACKET and NODE_STATUS
// as named. Every other bit and every other message has 0.
inline constexpr std::uint8_t kFlagAnswer = 0x01;     // the proxy's answer; `code` says how it went
inline constexpr std::uint8_t kFlagActive = 0x02;     // CONNECTION_REQUEST from the application
inline constexpr std::uint8_t kFlagImmediate = 0x04;  // JOIN: wants immediate binding
// PACKET
inline constexpr std::uint8_t kFlagChecksumPartial = 0x01;   // to be completed, or never needed
inline constexpr std::uint8_t kFlagChecksumVerified = 0x02;  // somebody has checked it
inline constexpr std::uint8_t kFlagUnknownFlow = 0x04;  // to the network node: yours, not of mine
inline constexpr std::uint8_t kFlagFinal = 0x08;        // to the proxy: nobody else has this flow
// NODE_STATUS
inline constexpr std::uint8_t kFlagDraining = 0x01;  // to the network node: no new flows, please

struct JoinServiceBody {
  WireAddress address;            // any-address (all zero ip) means every address at this port
  std::uint32_t request;          // chosen by the application node, returned in the answer
  std::uint32_t service;          // 0 in the request; the proxy's name for it in the answer
  std::uint32_t weight;           // 1..65535, for weighted balancing
  std::uint32_t connections_max;  // this node takes no more at a time; 0 is no limit
};
static_assert(sizeof(JoinServiceBody) == 40);

// LEAVE_SERVICE and SHUTDOWN_SERVICE
struct ServiceBody {
  std::uint32_t service;
  std::uint32_t request;
};
static_assert(sizeof(ServiceBody) == 8);

// Passive (proxy to application): a client came. Active (kFlagActive, application to proxy): the
// application wants an outgoing connection; `connection` is 0, `request` names it in the answer
// (ACCEPT_CONNECTION or REJECT_CONNECTION with the same `request`).
struct ConnectionRequestBody {
  std::uint64_t connection;
  std::uint32_t service;
  std::uint32_t request;
  WireAddress client;  // the remote end
  WireAddress local;   // our end; optional (family 0) in an active request
  // What is needed to rebuild the endpoint elsewhere; 0 in an active request.
  std::uint32_t initial_seq_local;
  std::uint32_t initial_seq_remote;
  std::uint16_t mss_bytes;
  std::uint8_t window_scale_local;
  std::uint8_t window_scale_remote;
  std::uint32_t tcp_options;        // bit 0: timestamps, bit 1: SACK permitted, bit 2: scaling
  std::uint32_t send_window_bytes;  // bytes of this stream that the receiver of this may send
  std::uint32_t timestamp_offset;
};
static_assert(sizeof(ConnectionRequestBody) == 88);

struct AcceptConnectionBody {
  std::uint64_t connection;
  std::uint32_t request;            // answers an active request; else 0
  std::uint32_t send_window_bytes;  // bytes of this stream that the receiver of this may send
  WireAddress local;                // the end that was chosen for an active request; else zero
  std::uint32_t initial_seq_local;  // as in CONNECTION_REQUEST, for an active request
  std::uint32_t initial_seq_remote;
  std::uint16_t mss_bytes;
  std::uint8_t window_scale_local;
  std::uint8_t window_scale_remote;
  std::uint32_t tcp_options;
};
static_assert(sizeof(AcceptConnectionBody) == 56);

struct RejectConnectionBody {
  std::uint64_t connection;  // 0 when an active request is refused
  std::uint32_t request;
  std::uint32_t reserved;
};
static_assert(sizeof(RejectConnectionBody) == 16);

// Followed by the payload: MessageHeader.length - kDataHeaderBytes bytes.
struct DataBody {
  std::uint64_t connection;
  std::uint64_t offset;  // of the first payload byte in this direction of the stream
};
static_assert(sizeof(DataBody) == 16);
inline constexpr std::size_t kDataHeaderBytes = sizeof(MessageHeader) + sizeof(DataBody);

struct CloseConnectionBody {
  std::uint64_t connection;
  std::uint64_t offset;  // bytes sent in this direction in all (checked for kFin and kFinBoth)
};
static_assert(sizeof(CloseConnectionBody) == 16);

struct CreditBody {
  std::uint64_t connection;
  std::uint64_t freed_offset;  // bytes of the receiver's stream that its peer has freed
  std::uint64_t acked_offset;  // towards the application: acknowledged by the client; else 0
};
static_assert(sizeof(CreditBody) == 24);

// Followed by up to kErrorTextBytesMax bytes of printable text.
struct ErrorBody {
  std::uint32_t request;  // the request that failed, if one did
  std::uint32_t text_bytes;
};
static_assert(sizeof(ErrorBody) == 8);

// The application proves that it has a key (lwproto/auth/proof.h); the answer proves that the proxy
// has it too.
struct AuthenticateBody {
  std::uint32_t request;  // chosen by the application node, returned in the answer
  std::uint32_t reserved;
  std::uint8_t key_name[kKeyNameBytesMax];  // letters, digits, '.', '_', '-'; zero-padded
  std::uint8_t proof[kProofBytes];          // all zeros in a refusal
};
static_assert(sizeof(AuthenticateBody) == 72);

// Followed by the IP packet: MessageHeader.length - kPacketHeaderBytes bytes, inline or by
// reference as the payload of DATA. Offload metadata as in netnode/packet_io/packet_io.h; offsets
// count from the IP header.
struct PacketBody {
  std::uint16_t segment_bytes;  // TCP payload of each segment; 0 without segmentation
  std::uint16_t header_bytes;   // IP and TCP header; 0 where not known
  std::uint16_t checksum_start;
  std::uint16_t checksum_offset;
  std::uint8_t segmentation;  // 0 none, 1 TCP over IPv4, 4 TCP over IPv6 (VIRTIO_NET_HDR_GSO_*)
  std::uint8_t reserved[7];
};
static_assert(sizeof(PacketBody) == 16);
inline constexpr std::size_t kPacketHeaderBytes = sizeof(MessageHeader) + sizeof(PacketBody);
inline constexpr std::size_t kPacketBytesMin = 20;  // an IPv4 header
inline constexpr std::size_t kPacketBytesMax = kDataPayloadBytesMax;

// How the sender is, and that it lives. From a network node all fields are 0.
struct NodeStatusBody {
  std::uint32_t weight;    // 1..65535, for the spreading of new flows
  std::uint16_t proxy_id;  // 1..1023, in the session tags of its segments; 0 has none
  std::uint16_t reserved;
};
static_assert(sizeof(NodeStatusBody) == 8);
inline constexpr std::uint16_t kProxyIdMax = 1023;

// The proxy asks whether an application node lives; the answer (kFlagAnswer) names the same number.
struct HeartbeatBody {
  std::uint32_t number;      // chosen by the proxy, returned in the answer
  std::uint32_t silence_ms;  // who hears nothing of the proxy for longer may take it for gone; 0:
                             // however long; in the answer 0
};
static_assert(sizeof(HeartbeatBody) == 8);

// A connection's 64-bit name: proxy epoch (16) | generation (24) | index (24). It never repeats
// within an epoch's lifetime: an index is reused only after every other free one, and its
// generation then goes up.
inline constexpr unsigned kConnectionIndexBits = 24;
constexpr std::uint64_t make_connection_id(std::uint16_t epoch, std::uint32_t generation,
                                           std::uint32_t index) {
  return (std::uint64_t{epoch} << 48) | (std::uint64_t{generation & 0xff'ffffu} << 24) |
         (index & 0xff'ffffu);
}
constexpr std::uint32_t connection_index(std::uint64_t id) { return id & 0xff'ffffu; }

}  // namespace sanproxy::wire

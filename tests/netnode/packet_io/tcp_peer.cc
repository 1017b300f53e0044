#include "tests/netnode/packet_io/tcp_peer.h"

#include <cstring>

#include "netnode/net/checksum.h"
#include "netnode/net/tcp_header.h"

namespace sanproxy::packet_io::testing {

bool TcpPeer::input(const Received& received) {
  net::ParsedPacket parsed;
  const Bytes& packet = received.packet;
  if (net::parse_packet(net::testing::as_span(packet), parsed) != net::DropReason::kNone ||
      parsed.l4 != net::L4::kTcp) {
    return false;
  }
  if (!received.offload.checksum_partial && !received.offload.checksum_verified) {
    EXPECT_TRUE(l4_checksum_ok(packet));
  }
  const net::TcpHeader tcp = net::load_tcp_header(packet.data() + parsed.l3_header_bytes);
  partial_ = partial_ || received.offload.checksum_partial;
  if ((tcp.flags & net::kTcpSyn) != 0) {
    client_ = parsed.src_address();
    client_port_ = tcp.src_port;
    ack_ = tcp.seq + 1;
    // MSS 1460 or 1440, window scale 9.
    const std::uint16_t mss = side_.v4() ? 1460 : 1440;
    send_segment(net::kTcpSyn | net::kTcpAck, {2, 4, static_cast<std::uint8_t>(mss >> 8),
                                               static_cast<std::uint8_t>(mss), 1, 3, 3, 9});
    ++seq_;
    return true;
  }
  established_ = true;
  largest_packet_bytes_ = std::max(largest_packet_bytes_, packet.size());
  segment_bytes_ = std::max(segment_bytes_, received.offload.segment_bytes);
  const std::size_t header = parsed.l3_header_bytes + parsed.l4_header_bytes;
  if (parsed.total_bytes > header) {
    if (tcp.seq == ack_) {
      const auto* at = reinterpret_cast<const char*>(packet.data());
      data_.append(at + header, at + parsed.total_bytes);
      ack_ += static_cast<std::uint32_t>(parsed.total_bytes - header);
    }
    send_segment(net::kTcpAck, {});
  }
  return true;
}

void TcpPeer::pretend_established(const IpAddress& client, std::uint16_t port) {
  client_ = client;
  client_port_ = port;
  established_ = true;
}

Bytes TcpPeer::headers(std::uint8_t flags, const Bytes& options, std::size_t data) const {
  const bool v4 = side_.v4();
  Bytes tcp(20);
  net::store_be16(tcp.data(), 80);
  net::store_be16(tcp.data() + 2, client_port_);
  net::store_be32(tcp.data() + 4, seq_);
  net::store_be32(tcp.data() + 8, ack_);
  tcp[12] = static_cast<std::uint8_t>((5 + options.size() / 4) << 4);
  tcp[13] = flags;
  net::store_be16(tcp.data() + 14, 0xffff);
  net::testing::append(tcp, options);
  Bytes packet = v4 ? net::testing::ipv4(6, tcp) : net::testing::ipv6(6, tcp);
  const std::size_t size = client_.size();
  std::uint8_t* addresses = packet.data() + (v4 ? 12 : 8);
  std::memcpy(addresses, side_.our_ip().bytes.data(), size);
  std::memcpy(addresses + size, client_.bytes.data(), size);
  const std::size_t ip_length = packet.size() + data - (v4 ? 0 : 40);
  net::store_be16(packet.data() + (v4 ? 2 : 4), static_cast<std::uint16_t>(ip_length));
  if (v4) {
    net::testing::fix_ipv4_checksum(packet);
  }
  // What a sender that leaves the checksum to the kernel puts there.
  const std::uint64_t sum = net::pseudo_header_sum(client_.family, addresses, addresses + size, 6,
                                                   static_cast<std::uint32_t>(tcp.size() + data));
  net::store_raw16(packet.data() + (v4 ? 20 : 40) + net::kTcpChecksumOffset, net::fold(sum));
  return packet;
}

void TcpPeer::send_segment(std::uint8_t flags, const Bytes& options) {
  Offload offload;
  offload.checksum_partial = true;
  offload.checksum_start = side_.v4() ? 20 : 40;
  offload.checksum_offset = net::kTcpChecksumOffset;
  side_.send(headers(flags, options, 0), offload);
}

void TcpPeer::send_super_packet(const std::string& text, std::uint16_t segment_bytes) {
  Offload offload;
  offload.segmentation = side_.v4() ? Segmentation::kTcp4 : Segmentation::kTcp6;
  offload.segment_bytes = segment_bytes;
  offload.checksum_partial = true;
  offload.checksum_start = side_.v4() ? 20 : 40;
  offload.checksum_offset = net::kTcpChecksumOffset;
  offload.header_bytes = static_cast<std::uint16_t>(offload.checksum_start + 20);
  std::vector<Bytes> pieces = {headers(net::kTcpAck | net::kTcpPsh, {}, text.size())};
  const std::size_t chunk = text.size() / 7 + 1;  // pieces of odd lengths
  for (std::size_t at = 0; at < text.size(); at += chunk) {
    const std::string piece = text.substr(at, chunk);
    pieces.emplace_back(piece.begin(), piece.end());
  }
  side_.send_pieces(pieces, offload);
  seq_ += static_cast<std::uint32_t>(text.size());
}

}  // namespace sanproxy::packet_io::testing

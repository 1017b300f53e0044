#include "netnode/packet_io/held_packets.h"

#include <cstring>

namespace sanproxy::packet_io {

bool HeldPackets::hold(const IpAddress& next_hop, const SendPacket& packet) {
  if (packet.length > kHeldPacketBytesMax || size_ == kHeldPacketsMax) {
    return false;
  }
  Held* place = nullptr;
  std::size_t same_hop = 0;
  for (Held& held : places_) {
    if (held.next_hop.family == Family::kNone) {
      place = &held;
    } else if (held.next_hop == next_hop) {
      ++same_hop;
    }
  }
  if (place == nullptr || same_hop >= kHeldPerHopMax) {
    return false;
  }
  std::byte* at = place->frame.data() + net::kEthernetHeaderBytes;
  for (std::uint32_t i = 0; i < packet.piece_count; ++i) {
    std::memcpy(at, packet.pieces[i].iov_base, packet.pieces[i].iov_len);
    at += packet.pieces[i].iov_len;
  }
  place->next_hop = next_hop;
  place->sequence = ++sequence_;
  place->length = packet.length;
  place->offload = packet.offload;
  ++size_;
  return true;
}

HeldPackets::Held* HeldPackets::take(const IpAddress& next_hop) {
  if (size_ == 0) {
    return nullptr;
  }
  Held* oldest = nullptr;
  for (Held& held : places_) {
    if (held.next_hop == next_hop && (oldest == nullptr || held.sequence < oldest->sequence)) {
      oldest = &held;
    }
  }
  if (oldest != nullptr) {
    oldest->next_hop = IpAddress{};
    --size_;
  }
  return oldest;
}

}  // namespace sanproxy::packet_io

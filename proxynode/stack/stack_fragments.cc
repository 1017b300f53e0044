// Packets that came in pieces: their pieces are copied, and the whole goes on like a packet that an
// interface has lent (stack_lent.cc) for as long as it is looked at.
#include "proxynode/stack/stack_impl.h"

namespace sanproxy::stack {

// What the driver says of a fragment's checksum is not asked: it is of the whole alone, and
// verified.
void Stack::Impl::add_fragment(const std::uint8_t* bytes, const Arrived& arrived) {
  const packet_io::ReceivedPacket& packet = *arrived.packet;
  const auto* const header = reinterpret_cast<const std::byte*>(bytes);
  const std::byte* const start = packet.lent != nullptr ? packet.lent : header;
  const std::span<const std::byte> whole =
      fragments.add(arrived.parsed, {header, packet.length}, {start, packet.length}, now_ns);
  if (whole.empty()) return;
  counters.bytes_copied += whole.size();
  if (hand_over(arrived.interface, whole, false)) return;
  packet_io::ReceivedPacket out;
  out.length = static_cast<std::uint32_t>(whole.size());
  out.lent = whole.data();
  out.from = packet.from;
  out.others_may_know = packet.others_may_know;
  input(arrived.interface, out);
}

bool Stack::Impl::hand_over(InterfaceIndex interface, std::span<const std::byte> packet,
                            bool checksum_verified) {
  if (!options.hand_over) return false;
  const HandedOver handed = options.hand_over(interface, packet, checksum_verified);
  if (handed == HandedOver::kOurs) return false;
  ++(handed == HandedOver::kPassedOn ? counters.handed_over : counters.dropped_handing_over);
  return true;
}

}  // namespace sanproxy::stack

// Packets in memory that an interface lends: the headers are copied, so that they stay as they were
// checked and may be written to; the payload stays where it is.
#include <cstring>

#include "proxynode/stack/stack_impl.h"

namespace sanproxy::stack {
namespace {

// As much as is copied before anything is looked at. Headers that do not fit are refused.
constexpr std::size_t kHeaderBytesMax = 256;
// Up to this many bytes are copied whole: cheaper than holding the lender's buffer.
constexpr std::uint32_t kSmallPacketBytes = 1024;

constexpr std::uint8_t kPbufRefType = static_cast<std::uint8_t>(PBUF_REF);

extern "C" void release_lent_pbuf(pbuf* chain) {
  Stack::Impl::current->release_lent(*reinterpret_cast<Stack::Impl::LentPayload*>(chain));
}

}  // namespace

void Stack::Impl::release_lent(LentPayload& payload) {
  interfaces[payload.interface]->io.release(payload.loan);
  payload.next_free = lent_free;
  lent_free = static_cast<std::uint32_t>(&payload - &lent[0]);
}

void Stack::Impl::input(InterfaceIndex interface, const packet_io::ReceivedPacket& packet) {
  if (!clock_fresh) refresh_clock();
  reply_to = packet.from;
  Arrived arrived;
  arrived.interface = interface;
  arrived.packet = &packet;
  const std::size_t headers = std::min<std::size_t>(packet.length, kHeaderBytesMax);
  std::memcpy(lent_headers.data(), packet.lent, headers);
  auto* const bytes = reinterpret_cast<std::uint8_t*>(lent_headers.data());
  const std::span<const std::byte> rest(packet.lent + headers, packet.length - headers);
  bool lent_on = false;
  if (packet.length <= lent_headers.size() && check(bytes, packet, arrived, rest)) {
    const bool tcp = arrived.parsed.l4 == net::L4::kTcp;
    const std::uint32_t skip = tcp ? arrived.parsed.l3_header_bytes : 0;
    lent_on = tcp && packet.loan != packet_io::kNoPacketLoan && packet.length > kSmallPacketBytes &&
              arrived.parsed.l4_bytes() > arrived.parsed.l4_header_bytes;
    if (lent_on) arrived.chain = wrap_lent(arrived);
    lent_on = lent_on && arrived.chain != nullptr;
    if (!lent_on) arrived.chain = copy_lent(arrived, headers, skip);
    if (arrived.chain == nullptr) {
      ++counters.dropped_no_slot;
    } else if (!tcp) {
      answer_other(arrived.chain, arrived);
    } else {
      arrived.l4 = static_cast<std::uint8_t*>(arrived.chain->payload);
      dispatch(arrived);
    }
  }
  if (!lent_on) interfaces[interface]->io.release(packet.loan);
}

// The packet without its first `skip` bytes, in memory of our own: what was checked, and the rest.
pbuf* Stack::Impl::copy_lent(const Arrived& arrived, std::size_t headers, std::uint32_t skip) {
  const std::uint32_t bytes = arrived.parsed.total_bytes - skip;
  pbuf* const chain = pbuf_alloc(PBUF_RAW, static_cast<u16_t>(bytes), PBUF_RAM);
  if (chain == nullptr) return nullptr;
  auto* const out = static_cast<std::byte*>(chain->payload);
  const std::size_t first = std::min<std::size_t>(headers, arrived.parsed.total_bytes);
  std::memcpy(out, lent_headers.data() + skip, first - skip);
  std::memcpy(out + first - skip, arrived.packet->lent + first, arrived.parsed.total_bytes - first);
  counters.bytes_copied += bytes - arrived.parsed.l4_header_bytes;
  return chain;
}

// The TCP header in a pbuf of its own, the payload behind it in place. Takes over the loan; nullptr
// when there is no memory for that.
pbuf* Stack::Impl::wrap_lent(const Arrived& arrived) {
  const std::uint32_t header_bytes = arrived.parsed.l4_header_bytes;
  std::uint32_t index = lent_free;
  if (index == kNone && lent_fresh < lent.capacity()) index = lent_fresh;
  if (index == kNone) return nullptr;
  pbuf* const header = pbuf_alloc(PBUF_RAW, static_cast<u16_t>(header_bytes), PBUF_RAM);
  if (header == nullptr) return nullptr;
  std::memcpy(header->payload, lent_headers.data() + arrived.parsed.l3_header_bytes, header_bytes);
  if (index == lent_fresh) {
    ++lent_fresh;
  } else {
    lent_free = lent[index].next_free;
  }
  LentPayload& payload = lent[index];
  payload.loan = arrived.packet->loan;
  payload.interface = arrived.interface;
  payload.custom.custom_free_function = release_lent_pbuf;
  pbuf& chain = payload.custom.pbuf;
  chain.next = nullptr;
  chain.payload =
      const_cast<std::byte*>(arrived.packet->lent) + arrived.parsed.l3_header_bytes + header_bytes;
  chain.tot_len = static_cast<u16_t>(arrived.parsed.l4_bytes() - header_bytes);
  chain.len = chain.tot_len;
  chain.type_internal = kPbufRefType;
  chain.flags = PBUF_FLAG_IS_CUSTOM;
  chain.ref = 1;
  chain.if_idx = NETIF_NO_INDEX;
  header->next = &chain;
  header->tot_len = static_cast<u16_t>(header->len + chain.tot_len);
  return header;
}

// Whether a piece of received payload lies in a lender's memory.
bool Stack::Impl::is_lent(const pbuf& piece) {
  return (piece.flags & PBUF_FLAG_IS_CUSTOM) != 0 &&
         reinterpret_cast<const pbuf_custom&>(piece).custom_free_function == release_lent_pbuf;
}

// In memory of our own, of which half is left for others; nullptr when there is none.
pbuf* Stack::Impl::copy_of(const pbuf& piece) {
  if (heap.used_bytes() >= heap.bytes_max() / 2) return nullptr;
  pbuf* const copy = pbuf_alloc(PBUF_RAW, piece.len, PBUF_RAM);
  if (copy == nullptr) return nullptr;
  std::memcpy(copy->payload, piece.payload, piece.len);
  counters.bytes_copied += piece.len;
  return copy;
}

// Payload that has to wait goes back to its lender, who has few buffers for all of its connections.
// False: there is no memory for a copy.
bool Stack::Impl::give_loan_back(Arrived& arrived) {
  pbuf* const payload = arrived.chain->next;
  if (payload == nullptr || !is_lent(*payload)) return true;
  pbuf* const copy = copy_of(*payload);
  if (copy == nullptr) return false;
  arrived.chain->next = copy;
  pbuf_free(payload);
  return true;
}

// A segment of a flow that we do not know, or a SYN for a service that nobody has joined here, goes
// back where it came from, if somebody else may know it.
bool Stack::Impl::send_back(const Arrived& arrived) {
  if (!arrived.packet->others_may_know) return false;
  ++counters.unknown_flows;
  interfaces[arrived.interface]->io.send_back(*arrived.packet);
  return true;
}

}  // namespace sanproxy::stack

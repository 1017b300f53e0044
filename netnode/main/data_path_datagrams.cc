// DataPath: UDP super-packets, as the datagrams that they stand for (docs/netnode.md "MTU").
#include "netnode/main/data_path.h"
#include "netnode/net/checksum.h"
#include "netnode/net/datagrams.h"

namespace sanproxy::netnode {
namespace {

// As many as Linux makes one packet of (UDP_MAX_SEGMENTS); more would be an amplifier.
constexpr std::size_t kDatagramsMax = 128;

// Whether the bytes bear out that it is one, with a checksum that is left to whoever cuts it.
bool is_super_packet(const net::ParsedPacket& parsed, const packet_io::Offload& said) {
  return parsed.l4 == net::L4::kUdp && !parsed.fragment && said.checksum_partial &&
         said.checksum_start == parsed.l3_header_bytes &&
         said.checksum_offset == net::kUdpChecksumOffset &&
         parsed.l4_bytes() > net::kUdpHeaderBytes &&
         parsed.l4_bytes() - net::kUdpHeaderBytes <= kDatagramsMax * said.segment_bytes;
}

}  // namespace

// In the order in which they came.
void DataPath::judge(std::span<const Here> packets) {
  std::size_t begin = 0;
  for (std::size_t i = 0; i < packets.size(); ++i) {
    if (packets[i].offload.segmentation != packet_io::Segmentation::kUdp) continue;
    judge_plain(packets.subspan(begin, i - begin));
    judge_datagrams(packets[i]);
    begin = i + 1;
  }
  judge_plain(packets.subspan(begin));
}

void DataPath::judge_datagrams(const Here& whole) {
  const packet_io::Offload& said = whole.offload;
  net::ParsedPacket parsed;
  if (net::parse_packet(bytes_of(whole), parsed) != net::DropReason::kNone ||
      !is_super_packet(parsed, said)) {
    ++counters_.dropped_uncut;
    release(whole);
    return;
  }
  net::UdpDatagrams datagrams(bytes_of(whole), parsed, said.segment_bytes);
  packet_io::Offload each;
  each.checksum_partial = true;
  each.checksum_start = said.checksum_start;
  each.checksum_offset = said.checksum_offset;
  std::array<Here, steer::kBurstMax> cut;
  std::size_t count = 0;
  while (datagrams.left() != 0) {
    const buffer::SlotIndex slot = pool_.acquire();
    if (slot == buffer::kNoSlot) {
      counters_.dropped_uncut += datagrams.left();
      break;
    }
    pool_.mark_received(slot);
    const std::size_t length = datagrams.next(pool_.data(slot) + kCopyOffset);
    cut[count++] = {slot, kCopyOffset, static_cast<std::uint32_t>(length), each};
    if (count == cut.size()) {
      judge_plain(cut);
      count = 0;
    }
  }
  judge_plain({cut.data(), count});
  release(whole);
  flush();  // or a burst of them would want more buffers than there are
}

}  // namespace sanproxy::netnode

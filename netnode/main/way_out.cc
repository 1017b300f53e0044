#include "netnode/main/way_out.h"

namespace sanproxy::netnode {

WayOut::WayOut(packet_io::PacketIo& io, packet_io::PacketPool& pool)
    : io_(io), pool_(pool), packets_(kQueueMax), slots_(kQueueMax), headers_(kQueueMax) {}

packet_io::SendPacket& WayOut::place() {
  if (count_ == kQueueMax) flush();
  return packets_[count_];
}

void WayOut::push(buffer::SlotIndex slot) { slots_[count_++] = slot; }

void WayOut::flush() {
  if (count_ == 0) return;
  const std::size_t taken = io_.send({packets_.data(), count_});
  io_.flush();
  counters_.packets += taken;
  counters_.dropped_full += count_ - taken;  // the network may lose packets; we do not wait
  for (std::size_t i = 0; i < count_; ++i) {
    if (slots_[i] != buffer::kNoSlot) pool_.release(slots_[i]);
  }
  count_ = 0;
}

}  // namespace sanproxy::netnode

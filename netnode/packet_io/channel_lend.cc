// ChannelIo, the part that passes memory on: large packets whose payload is not copied.

#include <algorithm>
#include <cstring>

#include "lwproto/daemon/log.h"
#include "netnode/net/checksum.h"
#include "netnode/net/packet.h"
#include "netnode/net/tcp_header.h"
#include "netnode/packet_io/channel_io.h"

namespace sanproxy::packet_io {
namespace {

constexpr std::uint32_t kTcpOffsetByte = 12;  // its upper half: words of the header
constexpr std::uint64_t kNsPerMs = 1'000'000;

// IP and TCP header, where the first piece begins with them whole; 0: not known.
std::uint32_t header_bytes_of(const SendPacket& packet) {
  const iovec& first = packet.pieces[0];
  const std::uint32_t tcp = packet.offload.checksum_start;
  if (!packet.offload.checksum_partial ||
      packet.offload.checksum_offset != net::kTcpChecksumOffset ||
      first.iov_len < std::size_t{tcp} + net::kTcpHeaderBytesMin) {
    return 0;
  }
  const auto* at = static_cast<const std::uint8_t*>(first.iov_base) + tcp;
  return tcp + (at[kTcpOffsetByte] >> 4) * 4u;
}

}  // namespace

// The node's key of a region; 0: it has none, so that what lies there has to be copied.
fabric::RegionKey ChannelIo::key_for(Node& node, fabric::LentMemory::Place place) {
  const fabric::LentMemory::Region& region = channel_options_.lent->region(place);
  Attached& entry = node.attached[place];
  if (entry.generation == region.generation) return entry.key;
  if (node.socket_full || !take_back(node, entry)) return 0;
  auto key = node.channel->endpoint().attach_passed(region.memory);
  if (!key.ok() && key.status().is_again()) {
    node.socket_full = true;
    return 0;
  }
  entry = {key.ok() ? *key : 0, region.generation, 0};
  if (!key.ok()) {
    ++counters_.regions_not_taken;
    spdlog::info("network node {} \"{}\" takes no more memory, what lies there is copied: {}",
                 node.about.number, node.about.name, key.status().text());
  }
  return entry.key;
}

// Of a region that is gone. False: not yet.
bool ChannelIo::take_back(Node& node, Attached& entry) {
  if (entry.key == 0) return true;
  const fabric::LentMemory& lent = *channel_options_.lent;
  if (!lent.is_done(std::min(entry.last, lent.mark()))) return false;
  if (node.socket_full) return false;
  if (node.channel->endpoint().detach(entry.key).is_again()) {
    node.socket_full = true;
    return false;
  }
  // There is room for what the node had no place for.
  for (Attached& other : node.attached) {
    if (other.key == 0) other.generation = 0;
  }
  entry = {};
  return true;
}

void ChannelIo::take_back_gone_regions() {
  const fabric::LentMemory& lent = *channel_options_.lent;
  const std::uint64_t gone = lent.regions_gone();
  if (gone == regions_gone_) return;
  bool all = true;
  for (const auto& node : nodes_) {
    if (node->dead || node->channel->closed()) continue;
    for (fabric::LentMemory::Place place = 0; place < lent.regions_max(); ++place) {
      Attached& entry = node->attached[place];
      if (entry.generation == lent.region(place).generation) continue;
      all = take_back(*node, entry) && all;
    }
  }
  if (all) regions_gone_ = gone;
}

// Adds a piece by reference, if it lies in memory that the node knows.
bool ChannelIo::pass_on(Node& node, const iovec& piece, Reference& out) {
  fabric::LentMemory& lent = *channel_options_.lent;
  const auto* data = static_cast<const std::byte*>(piece.iov_base);
  const fabric::LentMemory::Place place = lent.find(data, piece.iov_len);
  if (place == fabric::LentMemory::kNoPlace) return false;
  const fabric::RegionKey key = key_for(node, place);
  if (key == 0) return false;
  const auto offset = static_cast<std::uint64_t>(data - lent.region(place).memory.data);
  const auto length = static_cast<std::uint32_t>(piece.iov_len);
  fabric::GatherRef* const last = out.count == 0 ? nullptr : &out.refs[out.count - 1];
  if (last != nullptr && last->region == key && last->offset + last->length == offset) {
    last->length += length;
  } else if (out.count + 1 < out.refs.size()) {  // the last one is for what is copied
    out.refs[out.count++] = {key, length, offset};
  } else {
    return false;
  }
  node.attached[place].last = lent.mark() + 1;
  out.lent_bytes += length;
  return true;
}

// False: the pieces are not what the packet's length says.
bool ChannelIo::describe(Node& node, const SendPacket& packet, buffer::SlotIndex slot,
                         Reference& out) {
  const std::uint32_t headers = header_bytes_of(packet);
  const bool may_lend = headers != 0 && channel_options_.lent != nullptr &&
                        channel_options_.lent->has_room() && node.lend_from_ns <= looked_ns_;
  std::byte* const to = slots_.data(slot);
  std::uint32_t left = packet.length;
  for (std::uint32_t i = 0; i < packet.piece_count; ++i) {
    const iovec& piece = packet.pieces[i];
    if (piece.iov_len > left) return false;
    const auto length = static_cast<std::uint32_t>(piece.iov_len);
    left -= length;
    if (length == 0) continue;
    if (may_lend && out.copied_bytes >= headers && pass_on(node, piece, out)) continue;
    std::memcpy(to + out.copied_bytes, piece.iov_base, length);
    if (out.count != 0 && out.refs[out.count - 1].region == node.region_key) {
      out.refs[out.count - 1].length += length;
    } else {
      out.refs[out.count++] = {node.region_key, length, slots_.offset(slot) + out.copied_bytes};
    }
    out.copied_bytes += length;
  }
  return left == 0;
}

Status ChannelIo::send_by_reference(Node& node, const SendPacket& packet,
                                    const channel::PacketInfo& info) {
  if (node.slots_out >= slots_.free_count()) return Status::again();
  const buffer::SlotIndex slot = slots_.acquire();
  if (slot == buffer::kNoSlot) return Status::again();
  slots_.mark_received(slot);
  Reference reference;
  Status status = Status::error(Code::kInvalidArgument, "the pieces are not what the length says");
  if (describe(node, packet, slot, reference)) {
    status =
        node.channel->send_packet_reference(info, {reference.refs.data(), reference.count}, slot);
  }
  if (!status.ok()) {
    slots_.release(slot);
    return status;
  }
  counters_.tx_bytes_copied_unlent +=
      reference.copied_bytes - std::min(reference.copied_bytes, header_bytes_of(packet));
  ++node.slots_out;
  sent_[slot] = {0, &node, 0};
  if (reference.lent_bytes != 0) {
    sent_[slot].lend = channel_options_.lent->begin();
    counters_.tx_bytes_lent += reference.lent_bytes;
  }
  return status;
}

// What is lent holds up the memory of everybody, what is copied a slot.
void ChannelIo::judge_sent(std::uint64_t now_ns, bool was_away) {
  for (SentSlot& sent : sent_) {
    if (sent.node == nullptr) continue;
    if (was_away || sent.seen_ns == 0) {
      sent.seen_ns = now_ns;
      continue;
    }
    const bool lent = sent.lend != 0;
    const std::uint64_t limit_ms =
        lent ? channel_options_.lent_ms_max : channel_options_.dead_after_ms;
    if (now_ns - sent.seen_ns < limit_ms * kNsPerMs || sent.node->channel->closed()) continue;
    cut_off(*sent.node, lent, now_ns);
  }
}

void ChannelIo::cut_off(Node& node, bool lent, std::uint64_t now_ns) {
  ++counters_.peers_cut_off;
  if (lent) {
    const std::uint64_t until_ns =
        now_ns + kWithoutLendsShare * channel_options_.lent_ms_max * kNsPerMs;
    std::erase_if(without_lends_, [&](const WithoutLends& one) { return one.uid == node.uid; });
    if (without_lends_.size() >= channel_options_.nodes_max) {
      without_lends_.erase(without_lends_.begin());
    }
    without_lends_.push_back({node.uid, until_ns});
    for (const auto& other : nodes_) {
      if (other->uid == node.uid) other->lend_from_ns = until_ns;
    }
    spdlog::warn(
        "network node {} \"{}\" kept what it was lent: nothing is lent to user {} for {} s",
        node.about.number, node.about.name, node.uid,
        kWithoutLendsShare * channel_options_.lent_ms_max / 1000);
  }
  node.channel->close(wire::CloseCode::kTimedOut, "the network node keeps what it was sent");
}

}  // namespace sanproxy::packet_io

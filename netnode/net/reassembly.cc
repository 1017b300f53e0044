#include "netnode/net/reassembly.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "netnode/net/checksum.h"

namespace sanproxy::net {
namespace {

constexpr std::uint8_t kFragmentHeader = 44;
constexpr std::uint8_t kAuthenticationHeader = 51;
constexpr std::size_t kFragmentHeaderBytes = 8;

// Where the last of the headers says what follows it. parse_packet() has walked them.
std::uint16_t find_next_header(const std::uint8_t* at, std::size_t header_bytes) {
  std::uint8_t kind = at[6];
  std::size_t next_at = 6;
  for (std::size_t offset = kIpv6HeaderBytes; offset < header_bytes;) {
    next_at = offset;
    std::size_t bytes = (at[offset + 1] + std::size_t{1}) * 8;
    if (kind == kAuthenticationHeader) bytes = (at[offset + 1] + std::size_t{2}) * 4;
    if (kind == kFragmentHeader) bytes = kFragmentHeaderBytes;
    kind = at[offset];
    offset += bytes;
  }
  return static_cast<std::uint16_t>(next_at);
}

}  // namespace

Reassembly::Reassembly(const ReassemblyOptions& options, std::uint64_t seed)
    : options_(options),
      seed_(seed),
      ways_(std::clamp<std::uint32_t>(options.datagrams_max, 1, kWays)),
      sets_(std::max<std::uint32_t>(options.datagrams_max / ways_, 1)),
      datagrams_(std::size_t{ways_} * sets_),
      buffers_(std::size_t{ways_} * sets_) {}

FlowKey Reassembly::key_of(const ParsedPacket& parsed, const FragmentView& view) {
  FlowKey key;
  const std::size_t bytes = parsed.family == Family::kIpv4 ? 4 : 16;
  std::copy_n(parsed.src, bytes, key.src.begin());
  std::copy_n(parsed.dst, bytes, key.dst.begin());
  key.src_port = static_cast<std::uint16_t>(view.id);
  key.dst_port = static_cast<std::uint16_t>(view.id >> 16);
  key.protocol = parsed.protocol;
  key.family = parsed.family;
  return key;
}

std::uint32_t Reassembly::find_or_start(const FlowKey& key, std::uint64_t now_ns) {
  const std::uint64_t source = load_raw64(key.src.data()) ^ static_cast<std::uint64_t>(key.family);
  const std::uint64_t hash = multiply_mix(source ^ seed_, 0x9e37'79b9'7f4a'7c15U);
  const auto set = static_cast<std::uint32_t>(hash % sets_) * ways_;
  std::uint32_t index = set;
  for (std::uint32_t at = set; at < set + ways_; ++at) {
    if (datagrams_[at].until_ns != 0 && datagrams_[at].key == key) return at;
    if (datagrams_[at].until_ns < datagrams_[index].until_ns) index = at;
  }
  if (datagrams_[index].until_ns != 0) forget(index, counters_.displaced);
  Datagram& fresh = datagrams_[index];
  fresh = {};
  fresh.key = key;
  fresh.until_ns = now_ns + std::uint64_t{options_.timeout_ms} * 1'000'000;
  fresh.older = newest_;
  fresh.newer = kNone;
  (newest_ != kNone ? datagrams_[newest_].newer : oldest_) = index;
  newest_ = index;
  ++datagrams_waiting_;
  return index;
}

void Reassembly::forget(std::uint32_t index, std::uint64_t& reason) {
  Datagram& datagram = datagrams_[index];
  (datagram.older != kNone ? datagrams_[datagram.older].newer : oldest_) = datagram.newer;
  (datagram.newer != kNone ? datagrams_[datagram.newer].older : newest_) = datagram.older;
  datagram.until_ns = 0;
  reason += datagram.fragments;
  fragments_waiting_ -= datagram.fragments;
  --datagrams_waiting_;
}

// What is here of it goes, and what comes of it until its time is over (RFC 5722 3).
void Reassembly::refuse(std::uint32_t index, std::uint64_t& reason) {
  Datagram& datagram = datagrams_[index];
  reason += datagram.fragments + 1;
  fragments_waiting_ -= datagram.fragments;
  datagram.fragments = 0;
  datagram.refused = true;
}

void Reassembly::expire(std::uint64_t now_ns) {
  while (oldest_ != kNone && datagrams_[oldest_].until_ns <= now_ns) {
    forget(oldest_, counters_.timed_out);
  }
}

// What can be said of a fragment by itself.
bool Reassembly::acceptable(const ParsedPacket& parsed, std::span<const std::byte> header,
                            std::span<const std::byte> packet, FragmentView& view) {
  if (options_.datagrams_max == 0) {
    ++counters_.disabled;
    return false;
  }
  if (parsed.protocol != kProtocolTcp) {
    ++counters_.not_tcp;
    return false;
  }
  const std::size_t header_bytes =
      parsed.l3_header_bytes - (parsed.family == Family::kIpv6 ? kFragmentHeaderBytes : 0);
  if (!parse_fragment(header, parsed, view) || header_bytes > kHeaderBytesMax) {
    ++counters_.malformed;
    return false;
  }
  const bool inside_header = view.offset_bytes != 0 && view.offset_bytes < kTcpHeaderBytesMin;
  std::size_t tcp_bytes = 0;
  if (view.offset_bytes == 0 && parsed.l4_bytes() >= kTcpHeaderBytesMin) {
    const auto offset = std::to_integer<std::uint8_t>(packet[parsed.l3_header_bytes + 12U]);
    tcp_bytes = (offset >> 4) * std::size_t{4};
  }
  if (inside_header || (view.offset_bytes == 0 &&
                        (tcp_bytes < kTcpHeaderBytesMin || tcp_bytes > parsed.l4_bytes()))) {
    ++counters_.tiny;
    return false;
  }
  return true;
}

std::uint32_t Reassembly::blocks_here(const Datagram& datagram, std::uint32_t first,
                                      std::uint32_t end) {
  std::uint32_t count = 0;
  for (std::uint32_t block = first; block < end; ++block) {
    count += (datagram.here[block / 64] >> (block % 64) & 1U) != 0 ? 1 : 0;
  }
  return count;
}

// False: the fragment is dropped, and counted.
bool Reassembly::place(std::uint32_t index, const FragmentView& view,
                       std::span<const std::byte> payload) {
  Datagram& datagram = datagrams_[index];
  const auto bytes = static_cast<std::uint32_t>(payload.size());
  const std::uint32_t end_bytes = view.offset_bytes + bytes;
  const std::uint32_t first = view.offset_bytes / kBlockBytes;
  const std::uint32_t end = (end_bytes + kBlockBytes - 1) / kBlockBytes;
  std::byte* const at = buffers_[index].payload.data() + view.offset_bytes;
  const bool end_fits = view.more
                            ? datagram.total_bytes == 0 || end_bytes <= datagram.total_bytes
                            : datagram.end_bytes <= end_bytes &&
                                  (datagram.total_bytes == 0 || datagram.total_bytes == end_bytes);
  const std::uint32_t here = blocks_here(datagram, first, end);
  const bool last_again = view.more || datagram.total_bytes != 0;
  if (end_fits && here == end - first && last_again &&
      std::memcmp(at, payload.data(), bytes) == 0) {
    ++counters_.duplicate;
    return false;
  }
  if (!end_fits || here != 0) {
    refuse(index, counters_.overlap);
    return false;
  }
  std::memcpy(at, payload.data(), bytes);
  for (std::uint32_t block = first; block < end; ++block) {
    datagram.here[block / 64] |= std::uint64_t{1} << (block % 64);
  }
  datagram.blocks_here += end - first;
  datagram.end_bytes = std::max(datagram.end_bytes, end_bytes);
  if (!view.more) datagram.total_bytes = end_bytes;
  ++datagram.fragments;
  ++fragments_waiting_;
  return true;
}

// The first fragment's headers, right before the payload.
void Reassembly::keep_header(std::uint32_t index, const ParsedPacket& parsed,
                             std::span<const std::byte> header) {
  Datagram& datagram = datagrams_[index];
  std::size_t bytes = parsed.l3_header_bytes;
  if (parsed.family == Family::kIpv6) {
    bytes -= kFragmentHeaderBytes;
    datagram.next_header_at =
        find_next_header(reinterpret_cast<const std::uint8_t*>(header.data()), bytes);
  }
  datagram.header_bytes = static_cast<std::uint16_t>(bytes);
  auto& room = buffers_[index].header;
  std::memcpy(room.data() + room.size() - bytes, header.data(), bytes);
}

std::span<const std::byte> Reassembly::finish(std::uint32_t index) {
  const Datagram& datagram = datagrams_[index];
  Buffer& buffer = buffers_[index];
  const std::size_t header_bytes = datagram.header_bytes;
  const std::size_t bytes = header_bytes + datagram.total_bytes;
  if (bytes > kPayloadBytesMax) {
    --datagrams_[index].fragments;  // refuse() counts the one that is being looked at
    --fragments_waiting_;
    refuse(index, counters_.malformed);
    return {};
  }
  std::byte* const start = buffer.header.data() + buffer.header.size() - header_bytes;
  auto* const at = reinterpret_cast<std::uint8_t*>(start);
  if (datagram.key.family == Family::kIpv4) {
    store_be16(at + 2, static_cast<std::uint16_t>(bytes));
    store_be16(at + 6, 0);
    store_raw16(at + 10, 0);
    store_raw16(at + 10, ipv4_header_checksum(at, header_bytes));
  } else {
    store_be16(at + 4, static_cast<std::uint16_t>(bytes - kIpv6HeaderBytes));
    at[datagram.next_header_at] = kProtocolTcp;
  }
  forget(index, counters_.put_together);
  ++counters_.whole;
  return {start, bytes};
}

std::span<const std::byte> Reassembly::add(const ParsedPacket& parsed,
                                           std::span<const std::byte> header,
                                           std::span<const std::byte> packet,
                                           std::uint64_t now_ns) {
  ++counters_.received;
  expire(now_ns);
  FragmentView view;
  if (!acceptable(parsed, header, packet, view)) return {};
  const std::uint32_t index = find_or_start(key_of(parsed, view), now_ns);
  if (datagrams_[index].refused) {
    ++counters_.overlap;
    return {};
  }
  if (!place(index, view, packet.subspan(parsed.l3_header_bytes, parsed.l4_bytes()))) return {};
  if (view.offset_bytes == 0) keep_header(index, parsed, header);
  const Datagram& datagram = datagrams_[index];
  const auto blocks = (datagram.total_bytes + kBlockBytes - 1) / kBlockBytes;
  if (datagram.total_bytes == 0 || datagram.blocks_here != blocks) return {};
  return finish(index);
}

}  // namespace sanproxy::net

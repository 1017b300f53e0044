#include "netnode/packet_io/address_match.h"

#include <bpf/bpf.h>

#include <cerrno>

namespace sanproxy::packet_io {
namespace {

// What a program looks up: five words on its stack.
struct Key {
  std::uint32_t family = 0;  // 4 or 6
  std::array<std::uint8_t, 16> address{};
};
static_assert(sizeof(Key) == 20);

Key key_of(const IpAddress& address) {
  return {static_cast<std::uint32_t>(address.family), address.bytes};
}

constexpr int kKeyAt = -72;  // from the stack's top, r10; below what a FlowRedirect has there

void store_ipv4(BpfCode& code, int frame_offset) {
  for (int i = 1; i < 4; ++i) code.store_value(10, kKeyAt + 4 + 4 * i, 0);
  code.load(BPF_W, 5, 2, frame_offset);
  code.store(10, kKeyAt + 4, 5);
  code.store_value(10, kKeyAt, 4);
}

}  // namespace

Result<AddressMap> AddressMap::create(std::uint32_t addresses_max) {
  const int fd =
      bpf_map_create(BPF_MAP_TYPE_HASH, "san_addresses", sizeof(Key), 4, addresses_max, nullptr);
  if (fd < 0) return Status::error(Code::kSystem, "create a BPF map", errno);
  return AddressMap(UniqueFd(fd));
}

Status AddressMap::add(const IpAddress& address) {
  const Key key = key_of(address);
  const std::uint32_t one = 1;
  if (bpf_map_update_elem(fd_.get(), &key, &one, BPF_ANY) != 0) {
    return Status::error(Code::kSystem, "add an address to a BPF map", errno);
  }
  return {};
}

void AddressMap::remove(const IpAddress& address) {
  const Key key = key_of(address);
  (void)bpf_map_delete_elem(fd_.get(), &key);
}

void match_destination(BpfCode& code, const FrameBounds& bounds, const AddressMap& map, bool arp) {
  using A = BpfCode;
  constexpr std::int32_t kArp = 0x0608, kIp4 = 0x0008, kIp6 = 0xdd86;  // as little-endian loads
  code.load(BPF_W, 2, 6, bounds.data);
  code.load(BPF_W, 3, 6, bounds.data_end);
  code.need(14);
  code.load(BPF_H, 5, 2, 12);
  code.jump(BPF_JEQ, 5, kIp4, A::kIpv4);
  code.jump(BPF_JEQ, 5, kIp6, A::kIpv6);
  if (arp) {
    code.jump(BPF_JNE, 5, kArp, A::kOther);
    code.need(42);  // who is asked for, or who had asked
    store_ipv4(code, 38);
    code.jump(BPF_JA, 0, 0, A::kLookUp);
  } else {
    code.jump(BPF_JA, 0, 0, A::kOther);
  }
  code.here(A::kIpv4);
  code.need(34);
  store_ipv4(code, 30);
  code.jump(BPF_JA, 0, 0, A::kLookUp);
  code.here(A::kIpv6);
  code.need(54);
  for (int i = 3; i >= 0; --i) {  // backwards: Linux 6.1 wants it so without CAP_PERFMON
    code.load(BPF_W, 5, 2, 38 + 4 * i);
    code.store(10, kKeyAt + 4 + 4 * i, 5);
  }
  code.store_value(10, kKeyAt, 6);
  code.here(A::kLookUp);
  code.load_map(1, map.fd());
  code.move(2, 10);
  code.add_to(2, kKeyAt);
  code.call(BPF_FUNC_map_lookup_elem);
  code.jump(BPF_JEQ, 0, 0, A::kOther);
}

}  // namespace sanproxy::packet_io

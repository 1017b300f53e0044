// What lwIP's TCP links against: its IP layer, interfaces, memory and clock, as thin functions
// over the stack. lwIP's own IP layer is not built (docs/tcp_stack.md).
#include <sys/random.h>

#include <cstdio>
#include <cstdlib>

#include "lwip/ip.h"
#include "lwip/nd6.h"
#include "lwip/sys.h"
#include "lwip_hooks.h"
#include "proxynode/stack/stack_impl.h"

namespace sanproxy::stack {

ip_addr_t to_lwip(const IpAddress& address) {
  ip_addr_t out{};
  if (address.family == Family::kIpv6) {
    out.type = IPADDR_TYPE_V6;
    std::memcpy(out.u_addr.ip6.addr, address.bytes.data(), 16);
  } else {
    out.type = IPADDR_TYPE_V4;
    std::memcpy(&out.u_addr.ip4.addr, address.bytes.data(), 4);
  }
  return out;
}

IpAddress to_address(const ip_addr_t& address) {
  IpAddress out{IP_IS_V6_VAL(address) ? Family::kIpv6 : Family::kIpv4, {}};
  std::memcpy(out.bytes.data(), &address.u_addr, out.size());
  return out;
}

IpAddress key_address(const net::FlowKey& key, bool source) {
  return IpAddress{key.family, source ? key.src : key.dst};
}

std::uint64_t random64() {
  std::uint64_t value = 0;
  if (getrandom(&value, sizeof(value), 0) != sizeof(value)) std::abort();
  return value;
}

}  // namespace sanproxy::stack

using sanproxy::Family;
using sanproxy::stack::Connection;
using Impl = sanproxy::stack::Stack::Impl;

extern "C" {

struct ip_globals ip_data;
const ip_addr_t ip_addr_any_type = IPADDR_ANY_TYPE_INIT;

void* sanproxy_lwip_malloc(size_t bytes) { return Impl::current->heap.allocate(bytes); }

void* sanproxy_lwip_calloc(size_t count, size_t bytes) {
  void* block = Impl::current->heap.allocate(count * bytes);
  if (block != nullptr) std::memset(block, 0, count * bytes);
  return block;
}

void sanproxy_lwip_free(void* block) { Impl::current->heap.free(block); }

void sanproxy_lwip_assert_failed(const char* message, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: lwIP's invariant broken: %s\n", file, line, message);
  std::abort();
}

uint32_t sanproxy_lwip_random(void) { return static_cast<uint32_t>(sanproxy::stack::random64()); }

// lwIP asks for it to fill in TSval, and for nothing else.
u32_t sys_now(void) { return Impl::current->timestamp_value(); }

// RFC 6528: a clock of 4 microseconds plus a keyed hash of the connection. Behind TIME-WAIT beyond
// what the connection before has used (RFC 9293 3.6.1), which may be more than a byte in that time.
u32_t sanproxy_lwip_isn(const ip_addr_t* local_ip, u16_t local_port, const ip_addr_t* remote_ip,
                        u16_t remote_port) {
  const Impl& impl = *Impl::current;
  sanproxy::net::FlowKey key;
  key.src = sanproxy::stack::to_address(*remote_ip).bytes;
  key.dst = sanproxy::stack::to_address(*local_ip).bytes;
  key.src_port = remote_port;
  key.dst_port = local_port;
  key.family = IP_IS_V6(local_ip) ? Family::kIpv6 : Family::kIpv4;
  const auto isn = static_cast<u32_t>(key.hash(impl.secret[0]) + impl.now_ns / 4'000);
  const bool behind = impl.used_before && !sanproxy::stack::seq_after(isn, *impl.used_before);
  return behind ? *impl.used_before + 0x1'0000u : isn;
}

u32_t* sanproxy_lwip_add_timestamp(const struct pbuf* packet, const struct tcp_pcb* pcb,
                                   u32_t* options) {
  // A window probe's byte stands where lwIP expects no options.
  auto* const bytes = reinterpret_cast<std::uint8_t*>(options);
  if (packet->len > TCP_HLEN + LWIP_TCP_OPT_LEN_TS_OUT) bytes[LWIP_TCP_OPT_LEN_TS_OUT] = bytes[0];
  options[0] = PP_HTONL(0x0101080aU);
  options[1] = lwip_htonl(sys_now());
  options[2] = lwip_htonl(pcb->ts_recent);
  return options + 3;
}

u16_t sanproxy_lwip_ooseq_pbufs_max(const struct tcp_pcb* pcb) {
  // A quarter of what is free: many connections may lose packets at the same time.
  (void)pcb;
  const std::size_t free_slots = Impl::current->ingress.free_count();
  return static_cast<u16_t>(std::min<std::size_t>(free_slots / 4, 4096));
}

void tcp_timer_needed(void) {}  // settle() sees to it

struct netif* netif_get_by_index(u8_t index) {
  auto& interfaces = Impl::current->interfaces;
  const std::size_t at = static_cast<std::size_t>(index) - 1;
  return at < interfaces.size() ? &interfaces[at]->lwip : nullptr;
}

// Segments without a connection leave where the packet that they answer came from.
struct netif* ip4_route(const ip4_addr_t* dest) {
  (void)dest;
  return ip_data.current_netif;
}

struct netif* ip6_route(const ip6_addr_t* src, const ip6_addr_t* dest) {
  (void)src;
  (void)dest;
  return ip_data.current_netif;
}

const ip_addr_t* ip6_select_source_address(struct netif* netif, const ip6_addr_t* dest) {
  (void)netif;
  (void)dest;
  return nullptr;  // never asked: every connection has its local address
}

u16_t nd6_get_destination_mtu(const ip6_addr_t* address, struct netif* netif) {
  (void)address;
  return netif == nullptr ? u16_t{1280} : netif->mtu;
}

err_t ip4_output_if(struct pbuf* p, const ip4_addr_t* src, const ip4_addr_t* dest, u8_t ttl,
                    u8_t tos, u8_t proto, struct netif* netif) {
  (void)tos;
  (void)proto;
  return Impl::current->output(p, reinterpret_cast<const std::uint8_t*>(&src->addr),
                               reinterpret_cast<const std::uint8_t*>(&dest->addr), Family::kIpv4,
                               ttl, netif);
}

err_t ip6_output_if(struct pbuf* p, const ip6_addr_t* src, const ip6_addr_t* dest, u8_t hl, u8_t tc,
                    u8_t nexth, struct netif* netif) {
  (void)tc;
  (void)nexth;
  return Impl::current->output(p, reinterpret_cast<const std::uint8_t*>(src->addr),
                               reinterpret_cast<const std::uint8_t*>(dest->addr), Family::kIpv6, hl,
                               netif);
}

err_t lwip_tcp_event(void* arg, struct tcp_pcb* pcb, enum lwip_event event, struct pbuf* p,
                     u16_t size, err_t err) {
  return Impl::current->event(static_cast<Connection*>(arg), pcb, event, p, size, err);
}

}  // extern "C"

namespace sanproxy::stack {
namespace {

extern "C" void pcb_destroyed(u8_t id, void* data) {
  (void)id;
  if (data != nullptr) Stack::Impl::current->destroyed(*static_cast<Connection*>(data));
}

extern "C" err_t pcb_passively_opened(u8_t id, tcp_pcb_listen* listener, tcp_pcb* pcb) {
  (void)id;
  (void)listener;
  return Stack::Impl::current->passive_open(pcb);
}

constexpr tcp_ext_arg_callbacks kCallbacks = {pcb_destroyed, pcb_passively_opened};

}  // namespace

const tcp_ext_arg_callbacks& connection_callbacks() { return kCallbacks; }

}  // namespace sanproxy::stack

// What a packet costs on its way through netnode/steer: parse, service, flow table, Maglev, NAT.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "netnode/net/checksum.h"
#include "netnode/net/tcp_header.h"
#include "netnode/steer/forwarder.h"

namespace sanproxy::steer {
namespace {

constexpr std::size_t kPacketBytes = 64;
constexpr int kProxies = 100;

struct Packet {
  alignas(64) std::array<std::byte, kPacketBytes> bytes;
};

ForwarderOptions options() {
  ForwarderOptions out;
  out.flows.flows_max = 1'000'000;
  out.nat.addresses = {*IpAddress::parse("10.9.9.9")};
  out.nat.sessions_max = 16;
  return out;
}

void set_up(Forwarder& forwarder, Mode mode) {
  ProxySet set;
  for (int i = 0; i < kProxies; ++i) {
    ProxyConfig proxy;
    proxy.name = "proxy-" + std::to_string(i);
    proxy.id = static_cast<std::uint16_t>(i + 1);
    proxy.mode = mode;
    proxy.channel = "shm:/run/" + proxy.name;
    set.proxies.push_back(proxy);
  }
  for (int i = 0; i < 16; ++i) {
    set.services.push_back({*SocketAddress::parse("10.0.0." + std::to_string(i + 1) + ":80")});
  }
  std::vector<std::uint16_t> gone;
  forwarder.apply(set, gone);
  for (std::uint16_t i = 0; i < kProxies; ++i) forwarder.set_state(i, ProxyState::kUp);
}

// An ACK of 64 bytes in all, timestamps included, of flow `i`.
void write_packet(Packet& packet, std::uint32_t i) {
  auto* ip = reinterpret_cast<std::uint8_t*>(packet.bytes.data());
  std::memset(ip, 0, kPacketBytes);
  ip[0] = 0x45;
  net::store_be16(ip + 2, kPacketBytes);
  ip[8] = 64;
  ip[9] = net::kProtocolTcp;
  net::store_be32(ip + 12, 0x0b000000U + i / 50'000);
  net::store_be32(ip + 16, 0x0a000001U + i % 16);
  net::store_raw16(ip + 10, net::ipv4_header_checksum(ip, 20));
  std::uint8_t* tcp = ip + 20;
  net::store_be16(tcp, static_cast<std::uint16_t>(1024 + i % 50'000));
  net::store_be16(tcp + 2, 80);
  tcp[12] = 8 << 4;
  tcp[13] = net::kTcpAck;
  net::store_be32(tcp + 20, 0x0101080a);
}

// Packets of the flows in random order, often enough that none of it is learned by the processor.
std::vector<Packet> packets_of(std::uint32_t flows) {
  std::vector<std::uint32_t> order(std::max<std::uint32_t>(flows, 65'536));
  for (std::uint32_t i = 0; i < order.size(); ++i) order[i] = i % flows;
  std::shuffle(order.begin(), order.end(), std::mt19937(1));
  std::vector<Packet> out(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) write_packet(out[i], order[i]);
  return out;
}

// The argument: flows that take turns at random.
void steer_packets(benchmark::State& state) {
  Forwarder forwarder(options());
  set_up(forwarder, Mode::kChannel);
  const auto packets = packets_of(static_cast<std::uint32_t>(state.range(0)));
  std::array<Forwarder::Arrival, kBurstMax> arrivals;
  std::array<Verdict, kBurstMax> verdicts;
  const auto burst = [&](std::size_t at) {
    for (std::size_t i = 0; i < kBurstMax; ++i) arrivals[i].bytes = packets[at + i].bytes;
    forwarder.steer(arrivals, verdicts, 1'000'000);
    benchmark::DoNotOptimize(verdicts.data());
  };
  for (std::size_t at = 0; at + kBurstMax <= packets.size(); at += kBurstMax) burst(at);
  std::size_t at = 0;
  for (auto _ : state) {
    burst(at);
    at += kBurstMax;
    if (at + kBurstMax > packets.size()) at = 0;
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(kBurstMax));
  state.counters["ns_per_packet"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * kBurstMax / 1e9,
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
BENCHMARK(steer_packets)->Arg(1'000)->Arg(1'000'000);

void maglev_build(benchmark::State& state) {
  std::vector<MaglevBackend> backends;
  backends.reserve(state.range(0));
  for (int i = 0; i < state.range(0); ++i) {
    backends.push_back(
        {backend_hash("proxy-" + std::to_string(i)), 1, static_cast<std::uint16_t>(i)});
  }
  MaglevTable table;
  for (auto _ : state) {
    table.build(backends, kMaglevEntriesDefault);
    benchmark::DoNotOptimize(table.entries().data());
  }
}
BENCHMARK(maglev_build)->Arg(100)->Unit(benchmark::kMillisecond);

void nat_there_and_back(benchmark::State& state) {
  NatOptions nat_options;
  nat_options.addresses = {*IpAddress::parse("10.9.9.9")};
  Nat nat(nat_options, 1);
  const SocketAddress target = *SocketAddress::parse("10.5.0.1:80");
  Packet packet;
  write_packet(packet, 1);
  for (auto _ : state) {
    for (const bool back : {false, true}) {
      net::ParsedPacket parsed;
      benchmark::DoNotOptimize(net::parse_packet(packet.bytes, parsed));
      const net::FlowKey flow = net::flow_key(parsed, packet.bytes.data());
      const Nat::Packet what{packet.bytes, parsed};
      benchmark::DoNotOptimize(back ? nat.to_client(what, flow, 1)
                                    : nat.to_proxy(what, flow, 1, target, 1));
    }
    // To the next round it comes as the client sent it, which spends no hop.
    write_packet(packet, 1);
  }
  state.SetItemsProcessed(state.iterations() * 2);
}
BENCHMARK(nat_there_and_back);

}  // namespace
}  // namespace sanproxy::steer

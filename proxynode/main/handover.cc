#include "proxynode/main/handover.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "netnode/net/flow_key.h"
#include "netnode/net/icmp_error.h"
#include "netnode/net/packet.h"

namespace sanproxy::proxy {

Result<Handover::Ends> Handover::make_ends() {
  std::array<int, 2> fds{};
  if (::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()) != 0) {
    return Status::error(Code::kSystem, "socketpair", errno);
  }
  return Ends{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

Handover::Handover(const packet_io::QueueSteering& steering, std::uint32_t self, UniqueFd in,
                   std::vector<UniqueFd> out)
    : steering_(steering),
      self_(self),
      in_(std::move(in)),
      out_(std::move(out)),
      received_(packet_io::kReceiveBufferBytesMin) {}

namespace {

// The flow, as its client names it, that a packet is of, or that an ICMP error is about.
bool flow_of(std::span<const std::byte> packet, net::FlowKey& flow) {
  net::ParsedPacket parsed;
  if (net::parse_packet(packet, parsed) != net::DropReason::kNone) return false;
  if (parsed.l4 == net::L4::kTcp) {
    flow = net::flow_key(parsed, packet.data());
    return true;
  }
  net::IcmpError error;
  if (!net::is_icmp_error(packet, parsed) || !net::parse_icmp_error(packet, parsed, error)) {
    return false;
  }
  flow = error.inner.reversed();
  return flow.protocol == net::kProtocolTcp;
}

SocketAddress end_of(Family family, const std::array<std::uint8_t, 16>& address,
                     std::uint16_t port) {
  return {{family, address}, port};
}

}  // namespace

stack::HandedOver Handover::pass_on(stack::InterfaceIndex interface,
                                    std::span<const std::byte> packet, bool checksum_verified) {
  net::FlowKey flow;
  if (!flow_of(packet, flow)) return stack::HandedOver::kOurs;  // dropped, and counted, as any
  const std::uint32_t worker = steering_.queue_of(end_of(flow.family, flow.src, flow.src_port),
                                                  end_of(flow.family, flow.dst, flow.dst_port));
  if (worker == self_) return stack::HandedOver::kOurs;
  Head head{interface, checksum_verified};
  std::array<iovec, 2> pieces = {
      {{&head, sizeof(head)}, {const_cast<std::byte*>(packet.data()), packet.size()}}};
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = pieces.size();
  return ::sendmsg(out_[worker].get(), &message, MSG_NOSIGNAL) >= 0 ? stack::HandedOver::kPassedOn
                                                                    : stack::HandedOver::kLost;
}

Handover::Received Handover::receive() {
  const ssize_t got = ::recv(in_.get(), received_.data(), received_.size(), 0);
  Head head{};
  if (got <= static_cast<ssize_t>(sizeof(head))) return {};
  std::memcpy(&head, received_.data(), sizeof(head));
  return {head.interface,
          head.checksum_verified != 0,
          {received_.data() + sizeof(head), static_cast<std::size_t>(got) - sizeof(head)}};
}

}  // namespace sanproxy::proxy

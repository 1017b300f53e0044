#include "proxynode/main/handover.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <cerrno>

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

stack::HandedOver Handover::pass_on(stack::InterfaceIndex interface,
                                    std::span<const std::byte> packet) {
  net::ParsedPacket parsed;
  if (net::parse_packet(packet, parsed) != net::DropReason::kNone || parsed.l4 != net::L4::kTcp) {
    return stack::HandedOver::kOurs;  // to be dropped, and counted, as any other
  }
  const auto* const ports =
      reinterpret_cast<const std::uint8_t*>(packet.data()) + parsed.l3_header_bytes;
  const std::uint32_t worker =
      steering_.queue_of({parsed.src_address(), net::load_be16(ports)},
                         {parsed.dst_address(), net::load_be16(ports + 2)});
  if (worker == self_) return stack::HandedOver::kOurs;
  std::array<iovec, 2> pieces = {
      {{&interface, sizeof(interface)}, {const_cast<std::byte*>(packet.data()), packet.size()}}};
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = pieces.size();
  return ::sendmsg(out_[worker].get(), &message, MSG_NOSIGNAL) >= 0 ? stack::HandedOver::kPassedOn
                                                                    : stack::HandedOver::kLost;
}

std::span<const std::byte> Handover::receive(stack::InterfaceIndex& interface) {
  const ssize_t got = ::recv(in_.get(), received_.data(), received_.size(), 0);
  if (got < 2) return {};
  interface = std::to_integer<stack::InterfaceIndex>(received_[0]);
  return {received_.data() + 1, static_cast<std::size_t>(got) - 1};
}

}  // namespace sanproxy::proxy

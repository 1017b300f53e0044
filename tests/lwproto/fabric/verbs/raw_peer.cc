#include "tests/lwproto/fabric/verbs/raw_peer.h"

#include <arpa/inet.h>
#include <poll.h>
#include <rdma/rdma_verbs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <thread>

#include "lwproto/fabric/address.h"
#include "lwproto/fabric/fabric.h"
#include "lwproto/fabric/verbs/socket_address.h"

namespace sanproxy::fabric::verbs::test {
namespace {

constexpr int kResolveMs = 5000;
// Ends a test that would hang.
constexpr auto kPatience = std::chrono::seconds(30);

std::optional<std::uint32_t> immediate_of(Kind kind, std::uint32_t number) {
  if (kind == Kind::kInline) return std::nullopt;
  return make_immediate(kind, number);
}

}  // namespace

CmHeader honest_header() {
  const EndpointOptions options;
  CmHeader header;
  header.receive_depth = options.receive_depth;
  header.inline_bytes_max = options.inline_bytes_max;
  header.transfer_bytes_max = options.transfer_bytes_max;
  return header;
}

RawPeer::RawPeer() : memory_(kMemoryBytes, std::byte{0x11}) {}

void RawPeer::close() {
  if (id_ == nullptr) return;
  if (id_->qp != nullptr) ::rdma_destroy_qp(id_);
  if (key_ != nullptr) ::ibv_dereg_mr(key_);
  ::rdma_destroy_id(id_);
  id_ = nullptr;
  key_ = nullptr;
}

bool RawPeer::prepare(unsigned receives) {
  ibv_qp_init_attr attributes{};
  attributes.qp_type = IBV_QPT_RC;
  attributes.cap = {1024, std::max(receives, 1u), 1, 1, 0};
  if (::rdma_create_qp(id_, nullptr, &attributes) != 0) return false;
  key_ = ::rdma_reg_msgs(id_, memory_.data(), memory_.size());
  if (key_ == nullptr) return false;
  for (unsigned i = 0; i < receives; ++i) {
    if (::rdma_post_recv(id_, nullptr, memory_.data() + kMemoryBytes / 2, kReceiveBytes, key_) !=
        0) {
      return false;
    }
  }
  return true;
}

bool RawPeer::connect(const std::string& address, std::span<const std::byte> private_data,
                      unsigned receives) {
  sockaddr_storage to = system_address(FabricAddress::parse(address)->socket);
  if (::rdma_create_id(nullptr, &id_, nullptr, RDMA_PS_TCP) != 0) return false;
  sockaddr_storage from{};
  if (!from_.empty()) from = system_address({*IpAddress::parse(from_), 0});
  if (::rdma_resolve_addr(id_, from_.empty() ? nullptr : reinterpret_cast<sockaddr*>(&from),
                          reinterpret_cast<sockaddr*>(&to), kResolveMs) != 0 ||
      ::rdma_resolve_route(id_, kResolveMs) != 0 || !prepare(receives)) {
    return false;
  }
  rdma_conn_param param{};
  param.private_data = private_data.data();
  param.private_data_len = static_cast<std::uint8_t>(private_data.size());
  param.retry_count = 6;
  param.rnr_retry_count = 0;
  const bool accepted = ::rdma_connect(id_, &param) == 0;
  if (id_->event != nullptr && id_->event->param.conn.private_data != nullptr) {
    const auto* bytes = static_cast<const std::byte*>(id_->event->param.conn.private_data);
    reply_.assign(bytes, bytes + id_->event->param.conn.private_data_len);
  }
  return accepted;
}

bool RawPeer::connect_honestly(const std::string& address, unsigned receives) {
  return connect(address, encode(honest_header()), receives);
}

bool RawPeer::say_hello(const LinkParameters& link) {
  Bytes hello(kHandshakeBytesMax);
  hello.resize(encode_hello(link, {}, hello));
  return send(hello, make_immediate(Kind::kHello, 0)) == IBV_WC_SUCCESS &&
         kind_of(receive()) == Kind::kAccept;
}

// The other side has ended the connection, and nothing more will come.
bool RawPeer::gone() {
  pollfd fd{id_->channel->fd, POLLIN, 0};
  if (::poll(&fd, 1, 0) != 1) return false;
  rdma_cm_event* event = nullptr;
  if (::rdma_get_cm_event(id_->channel, &event) != 0) return true;
  const bool ended = event->event == RDMA_CM_EVENT_DISCONNECTED;
  ::rdma_ack_cm_event(event);
  return ended;
}

std::optional<ibv_wc> RawPeer::wait_for(bool receive) {
  const auto is_it = [&](const ibv_wc& wc) {
    // The opcode of a failed one means nothing: its id tells.
    return (wc.wr_id == 0) == receive;
  };
  const auto kept = std::find_if(put_aside_.begin(), put_aside_.end(), is_it);
  if (kept != put_aside_.end()) {
    const ibv_wc out = *kept;
    put_aside_.erase(kept);
    return out;
  }
  const auto give_up = std::chrono::steady_clock::now() + kPatience;
  while (std::chrono::steady_clock::now() < give_up) {
    ibv_wc wc{};
    for (ibv_cq* cq : {id_->send_cq, id_->recv_cq}) {
      if (::ibv_poll_cq(cq, 1, &wc) != 1) continue;
      if (is_it(wc)) return wc;
      put_aside_.push_back(wc);
    }
    if (gone()) return std::nullopt;
    std::this_thread::yield();
  }
  return std::nullopt;
}

ibv_wc_status RawPeer::post_and_wait(ibv_send_wr& request) {
  ibv_send_wr* refused = nullptr;
  if (::ibv_post_send(id_->qp, &request, &refused) != 0) return IBV_WC_GENERAL_ERR;
  const auto completion = wait_for(false);
  return completion ? completion->status : IBV_WC_GENERAL_ERR;
}

ibv_wc_status RawPeer::send(std::span<const std::byte> bytes,
                            std::optional<std::uint32_t> immediate) {
  std::copy(bytes.begin(), bytes.end(), memory_.begin());
  ibv_sge piece{reinterpret_cast<std::uintptr_t>(memory_.data()),
                static_cast<std::uint32_t>(bytes.size()), key_->lkey};
  ibv_send_wr request{};
  request.wr_id = 1;
  request.sg_list = &piece;
  request.num_sge = bytes.empty() ? 0 : 1;
  request.send_flags = IBV_SEND_SIGNALED;
  request.opcode = immediate ? IBV_WR_SEND_WITH_IMM : IBV_WR_SEND;
  request.imm_data = htonl(immediate.value_or(0));
  return post_and_wait(request);
}

ibv_wc_status RawPeer::send(Kind kind, std::uint32_t number, std::size_t bytes) {
  return send(Bytes(bytes, std::byte{0x22}), immediate_of(kind, number));
}

bool RawPeer::send_burst(Kind kind, std::uint32_t number, std::size_t bytes, unsigned count) {
  const auto immediate = immediate_of(kind, number);
  ibv_sge piece{reinterpret_cast<std::uintptr_t>(memory_.data()), static_cast<std::uint32_t>(bytes),
                key_->lkey};
  for (unsigned i = 0; i < count; ++i) {
    ibv_send_wr request{};
    request.wr_id = 1;
    request.sg_list = &piece;
    request.num_sge = 1;
    request.opcode = immediate ? IBV_WR_SEND_WITH_IMM : IBV_WR_SEND;
    request.imm_data = htonl(immediate.value_or(0));
    ibv_send_wr* refused = nullptr;
    if (::ibv_post_send(id_->qp, &request, &refused) != 0) return false;
  }
  return true;
}

ibv_wc_status RawPeer::write_where_nothing_is() {
  ibv_sge piece{reinterpret_cast<std::uintptr_t>(memory_.data()), 64, key_->lkey};
  ibv_send_wr request{};
  request.wr_id = 1;
  request.sg_list = &piece;
  request.num_sge = 1;
  request.send_flags = IBV_SEND_SIGNALED;
  request.opcode = IBV_WR_RDMA_WRITE;
  request.wr.rdma.remote_addr = 0x1000;
  request.wr.rdma.rkey = 0xdead;
  return post_and_wait(request);
}

ibv_wc_status RawPeer::write_nothing(std::uint32_t immediate) {
  ibv_send_wr request{};
  request.wr_id = 1;
  request.send_flags = IBV_SEND_SIGNALED;
  request.opcode = IBV_WR_RDMA_WRITE_WITH_IMM;
  request.imm_data = htonl(immediate);
  return post_and_wait(request);
}

bool RawPeer::fall_silent() {
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_RESET;
  return ::ibv_modify_qp(id_->qp, &attributes, IBV_QP_STATE) == 0;
}

std::uint32_t RawPeer::receive() {
  const auto completion = wait_for(true);
  if (!completion || completion->status != IBV_WC_SUCCESS) return 0;
  return ntohl(completion->imm_data);
}

}  // namespace sanproxy::fabric::verbs::test

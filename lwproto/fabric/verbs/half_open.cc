#include "lwproto/fabric/verbs/half_open.h"

#include <arpa/inet.h>

#include <algorithm>

#include "lwproto/fabric/verbs/socket_address.h"

namespace sanproxy::fabric::verbs {
namespace {

constexpr std::size_t kHelloAt = 0;
constexpr std::size_t kAnswerAt = 4096;
constexpr std::size_t kMemoryBytes = 8192;
static_assert(kHandshakeBytesMax <= kAnswerAt);

ibv_sge piece_at(const buffer::MemoryRegion& memory, const MemoryKey& key, std::size_t offset,
                 std::size_t bytes) {
  return {reinterpret_cast<std::uintptr_t>(memory.data()) + offset,
          static_cast<std::uint32_t>(bytes), key.local()};
}

}  // namespace

VerbsListener::HalfOpen::HalfOpen(std::shared_ptr<Core> core, std::deque<std::uint64_t>& ready,
                                  std::uint64_t token)
    : core_(std::move(core)),
      ready_(ready),
      token_(token),
      deadline_ns_(core_->now_ns() + core_->options().handshake_timeout_ms * 1'000'000ull) {
  core_->wake_at(deadline_ns_);
}

Status VerbsListener::HalfOpen::start(CmId id, const CmHeader& peers,
                                      const EndpointOptions& options) {
  identity_.address = peer_address(*id);
  network_ = network_of(host_of(::rdma_get_peer_addr(id.get())));
  auto queue_pair =
      QueuePair::create(core_, std::move(id), this, queue_sizes_of(options, peers.queue_pairs));
  if (!queue_pair.ok()) return queue_pair.status();
  queue_pair_ = std::move(*queue_pair);
  if (Status status = post_receive(); !status.ok()) return status;
  queue_pair_->arm();
  path_.service_level = peers.service_level;
  path_.traffic_class = peers.traffic_class;
  CmHeader header = header_of(options);
  header.queue_pairs = peers.queue_pairs;
  if (peers.queue_pairs > 1) {
    auto token = make_channel_token();
    if (!token.ok()) return token.status();
    header.token = token_of_channel_ = *token;
  }
  return queue_pair_->accept(header, path_);
}

bool VerbsListener::HalfOpen::expects(rdma_cm_id& id, const CmHeader& peers) const {
  return state_ == State::kSilent && same_channel(token_of_channel_, peers.token) &&
         peers.queue_pairs == queue_pair_->lanes() &&
         peers.queue_pair == queue_pair_->lanes_ready() && peer_address(id) == identity_.address;
}

Status VerbsListener::HalfOpen::add_lane(CmId id, const EndpointOptions& options) {
  auto lane = QueuePair::create_further(core_, std::move(id), this, *queue_pair_);
  if (!lane.ok()) return lane.status();
  if (Status status = (*lane)->accept(header_of(options), path_); !status.ok()) return status;
  queue_pair_->add_lane(std::move(*lane));
  return {};
}

Status VerbsListener::HalfOpen::post_receive() {
  auto memory = buffer::MemoryRegion::create("verbs-handshake", kMemoryBytes);
  if (!memory.ok()) return memory.status();
  memory_ = std::move(*memory);
  auto key = queue_pair_->device().register_region(memory_);
  if (!key.ok()) return key.status();
  key_ = std::move(*key);
  ibv_sge piece = piece_at(memory_, *key_, kHelloAt, kHandshakeBytesMax);
  ibv_recv_wr request{};
  request.wr_id = kReceiveBit;
  request.sg_list = &piece;
  request.num_sge = 1;
  if (const int error = queue_pair_->post(&request); error != 0) {
    return Status::error(Code::kSystem, "post the receive of a hello", error);
  }
  return {};
}

void VerbsListener::HalfOpen::on_cm_event(const CmEvent& event) {
  switch (event.type) {
    case RDMA_CM_EVENT_DISCONNECTED:
    case RDMA_CM_EVENT_CONNECT_ERROR:
    case RDMA_CM_EVENT_UNREACHABLE:
    case RDMA_CM_EVENT_REJECTED:
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
      // The owner may have the request in its hands: it learns of the end when it answers.
      die();
      break;
    default:
      break;
  }
}

void VerbsListener::HalfOpen::look() {
  if (!may_give_way()) return;
  queue_pair_->arm();
  ibv_wc completion{};
  while (may_give_way() && queue_pair_->poll({&completion, 1}) == 1) take(completion);
}

void VerbsListener::HalfOpen::take(const ibv_wc& completion) {
  // Whatever became of our no, that was it.
  if (state_ == State::kRefusing || completion.status != IBV_WC_SUCCESS) return die();
  take_hello(completion);
}

void VerbsListener::HalfOpen::take_hello(const ibv_wc& completion) {
  const bool marked = (completion.wc_flags & IBV_WC_WITH_IMM) != 0 &&
                      kind_of(ntohl(completion.imm_data)) == Kind::kHello;
  Result<Hello> hello =
      marked ? decode_hello({memory_.data() + kHelloAt, completion.byte_len})
             : Result<Hello>(Status::error(Code::kProtocol, "a first transfer that is no hello"));
  if (!hello.ok()) {
    ++core_->counters().refused_hellos;
    return die();
  }
  hello_ = std::move(*hello);
  std::uint32_t field = refused_field(hello_.link);
  if (queue_pair_->lanes_ready() != queue_pair_->lanes() ||
      std::max(hello_.link.queue_pairs, 1u) != queue_pair_->lanes()) {
    field = kLinkQueuePairs;
  }
  if (field != 0) {
    ++core_->counters().refused_hellos;
    return refuse(field, {});
  }
  state_ = State::kReady;
  ready_.push_back(token_);
}

void VerbsListener::HalfOpen::refuse(std::uint32_t field, std::span<const std::byte> private_data) {
  private_data = private_data.first(std::min(private_data.size(), kPrivateDataBytesMax));
  const std::size_t bytes =
      encode_answer(private_data, memory_.bytes().subspan(kAnswerAt, kHandshakeBytesMax));
  ibv_sge piece = piece_at(memory_, *key_, kAnswerAt, bytes);
  ibv_send_wr request{};
  request.sg_list = &piece;
  request.num_sge = 1;
  request.opcode = IBV_WR_SEND_WITH_IMM;
  request.send_flags = IBV_SEND_SIGNALED;
  request.imm_data = htonl(make_immediate(Kind::kReject, field));
  if (queue_pair_->post(&request) != 0) return die();
  state_ = State::kRefusing;
  queue_pair_->arm();
}

}  // namespace sanproxy::fabric::verbs

// NodeImpl: services, outgoing connections, registered memory, and news of the Links.
#include <algorithm>

#include "appnode-lib/client/convert.h"
#include "appnode-lib/client/node_impl.h"

namespace sanproxy::app::internal {
namespace {

Status ending() { return {Code::kDisconnected, "the node is being destroyed"}; }

}  // namespace

// --- services

Result<Service> NodeImpl::join(std::string_view address, RequestHandler on_request,
                               JoinOptions options) {
  if (closing_) return ending();
  auto parsed = Address::parse(address);
  if (!parsed.ok()) return parsed.status();
  if (on_request == nullptr) return Status(Code::kInvalidArgument, "nobody to ask about clients");
  if (parsed->port == 0) return Status(Code::kInvalidArgument, "a service needs a port");
  if (options.weight == 0) return Status(Code::kInvalidArgument, "the least weight is 1");
  for (const auto& service : services_) {
    if (!service->leaving && service->address == *parsed) {
      return Status(Code::kExists, "this service is joined already");
    }
  }
  auto place = place_for_service();
  if (!place.ok()) return place.status();
  const std::uint64_t serial = ++last_service_serial_;
  services_[*place] = std::make_unique<ServiceImpl>(ServiceImpl{
      serial, *parsed, parsed->to_string(), options, std::move(on_request), false, false});
  for (const auto& link : links_) link->sync_services();
  return Service(this, *place, serial, *parsed);
}

// That of a service that has left everywhere, or a new one.
Result<std::uint32_t> NodeImpl::place_for_service() {
  for (std::uint32_t i = 0; i < services_.size(); ++i) {
    if (!left(i)) continue;
    for (const auto& link : links_) link->forget_service(i);
    return i;
  }
  if (services_.size() == kServicesMax) return Status(Code::kExhausted, "1024 services");
  services_.emplace_back();
  return static_cast<std::uint32_t>(services_.size() - 1);
}

void NodeImpl::leave(std::uint32_t index, std::uint64_t serial, bool shutdown) {
  ServiceImpl& service = *services_[index];
  if (service.serial != serial || service.leaving) return;
  service.leaving = true;
  service.shutting_down = shutdown;
  for (const auto& link : links_) link->sync_services();
}

std::size_t NodeImpl::joined_count(std::uint32_t service, std::uint64_t serial) const {
  if (!is(service, serial)) return 0;
  return static_cast<std::size_t>(
      std::count_if(links_.begin(), links_.end(),
                    [&](const auto& link) { return link->service_joined(service); }));
}

bool NodeImpl::left(std::uint32_t service) const {
  return services_[service]->leaving &&
         std::all_of(links_.begin(), links_.end(),
                     [&](const auto& link) { return link->service_settled(service); });
}

bool NodeImpl::drained() const {
  if (pool_.live() != 0 || send_memory_->free_count() != send_slots_) return false;
  for (const auto& region : regions_) {
    if (region->in_use != 0) return false;
  }
  for (std::uint32_t i = 0; i < services_.size(); ++i) {
    if (!left(i)) return false;
  }
  return true;
}

// --- outgoing connections

Result<Connection*> NodeImpl::connect(std::string_view remote, ConnectionHandler& handler,
                                      void* user) {
  if (closing_) return ending();
  auto address = Address::parse(remote);
  if (!address.ok()) return address.status();
  if (address->port == 0) return Status(Code::kInvalidArgument, "a remote end needs a port");
  bool any_ready = false;
  Link* chosen = nullptr;
  for (std::size_t tried = 0; tried < links_.size() && chosen == nullptr; ++tried) {
    Link& next = *links_[next_link_++ % links_.size()];
    any_ready = any_ready || next.ready();
    if (next.ready() && next.has_source(address->family)) chosen = &next;
  }
  if (!any_ready) return Status(Code::kDisconnected, "no proxy is connected");
  if (chosen == nullptr) {
    return Status(Code::kNotFound, "no joined service has an address of that family to come from");
  }
  Link& link = *chosen;
  ConnectionImpl* connection = pool_.acquire();
  if (connection == nullptr) return Status(Code::kExhausted, "connections_max");
  connection->begin(link, ConnectionImpl::State::kConnecting, options_.receive_window_bytes);
  connection->handler = &handler;
  connection->user = user;
  connection->remote_address = *address;
  connection->local_address = {};
  connection->pending = ConnectionImpl::kConnect;
  connection->flush_pending();
  return static_cast<Connection*>(connection);
}

// --- registered memory

Result<RegisteredMemory> NodeImpl::register_memory(std::size_t bytes) {
  if (bytes == 0) return Status(Code::kInvalidArgument, "no bytes to register");
  // A channel can attach memory but not detach it: what was released serves the next that fits.
  for (const auto& region : regions_) {
    if (region->released && region->in_use == 0 && region->memory.size() >= bytes) {
      region->released = false;
      region->bytes = bytes;
      std::fill_n(region->memory.data(), bytes, std::byte{0});
      return RegisteredMemory(region);
    }
  }
  auto memory = buffer::MemoryRegion::create("appnode-registered", bytes);
  if (!memory.ok()) return to_public(memory.status());
  auto region = std::make_shared<Region>();
  region->memory = std::move(*memory);
  region->bytes = bytes;
  region->index = static_cast<std::uint32_t>(regions_.size());
  regions_.push_back(std::move(region));
  for (const auto& link : links_) link->attach(*regions_.back());
  return RegisteredMemory(regions_.back());
}

// --- news of the Links

void NodeImpl::link_up(Link& link) {
  ++links_up_;
  if (options_.on_proxy_up) options_.on_proxy_up(link.address());
}

void NodeImpl::link_lost() { --links_up_; }

void NodeImpl::link_down(Link& link, std::string_view reason) {
  if (options_.on_proxy_down) options_.on_proxy_down(link.address(), reason);
}

void NodeImpl::joined(std::size_t service, Link& link) {
  // A copy: what is called may leave this service and give its place to another.
  const std::string name = services_[service]->name;
  if (options_.on_joined) options_.on_joined(name, link.address());
}

void NodeImpl::join_refused(std::size_t service, Link& link, CloseCode code) {
  const std::string name = services_[service]->name;
  if (options_.on_join_refused) options_.on_join_refused(name, link.address(), code);
}

void NodeImpl::key_refused(std::size_t key, Link& link, CloseCode code) {
  if (options_.on_key_refused) options_.on_key_refused(keys_[key].name(), link.address(), code);
}

void NodeImpl::end_connections(Link& link, CloseCode reason) {
  for (std::uint32_t slot = 0; slot < pool_.slot_count(); ++slot) {
    ConnectionImpl* connection = pool_.at(slot);
    if (connection->link == &link && connection->state != ConnectionImpl::State::kFree) {
      connection->link_lost(reason);
    }
  }
}

void NodeImpl::bury(std::unique_ptr<ChannelHold> hold) {
  if (hold == nullptr) return;
  if (hold->receives_into_pool) kept_.on_buffers_freed();
  if (hold->loans != 0) buried_.push_back(std::move(hold));
}

}  // namespace sanproxy::app::internal

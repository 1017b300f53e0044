// The public calls of Node and Service: thin over NodeImpl; and what a real process is made of.
#include "appnode-lib/client/node_impl.h"
#include "lwproto/fabric/shm/shm_fabric.h"
#include "lwproto/fabric/tcp/tcp_fabric.h"
#include "lwproto/fabric/verbs/verbs_fabric.h"

namespace sanproxy::app {

using internal::impl;
using internal::NodeImpl;

namespace {

using MadeFabric = ::sanproxy::Result<std::unique_ptr<fabric::Fabric>>;

MadeFabric make_tcp(const NodeOptions& node) {
  fabric::TcpOptions options;
  options.certificate_file = node.tls.certificate;
  options.key_file = node.tls.key;
  options.authority_file = node.tls.ca;
  options.server_name = node.tls.proxy_name;
  return fabric::make_tcp_fabric(options);
}

MadeFabric make_verbs(const NodeOptions&) {
  auto fabric = fabric::make_verbs_fabric();
  if (!fabric.ok()) return fabric.status();
  return std::unique_ptr<fabric::Fabric>(std::move(fabric).value());
}

// Pieces of our memory that a proxy may refer to at a time over shm, unless its max_references is
// less.
constexpr std::uint32_t kShmSendDepth = 16'384;

}  // namespace

internal::Assembly internal::default_assembly() {
  Assembly assembly;
  assembly.fabrics["shm"] = {[](const NodeOptions&) { return fabric::make_shm_fabric(); }, false,
                             kShmSendDepth};
  assembly.fabrics["verbs"] = {make_verbs, true, 0};
  assembly.fabrics["tcp"] = {make_tcp, true, 0};
  return assembly;
}

Result<std::unique_ptr<Node>> Node::create(NodeOptions options) {
  auto node = NodeImpl::create(std::move(options), internal::default_assembly());
  if (!node.ok()) return node.status();
  return std::unique_ptr<Node>(std::move(*node));
}

Result<Service> Node::join(std::string_view address, RequestHandler on_request,
                           JoinOptions options) {
  return impl(*this).join(address, std::move(on_request), options);
}

Result<Connection*> Node::connect(std::string_view remote, ConnectionHandler& handler, void* user) {
  return impl(*this).connect(remote, handler, user);
}

Result<RegisteredMemory> Node::register_memory(std::size_t bytes) {
  return impl(*this).register_memory(bytes);
}

void Node::run() {
  while (!stopped() && !impl(*this).polling()) wait(-1);
}

void Node::stop() { impl(*this).stop(); }
bool Node::stopped() const { return impl(*this).stopped(); }
std::size_t Node::wait(int timeout_ms) { return impl(*this).wait(timeout_ms); }
int Node::fd() const { return impl(*this).fd(); }
bool Node::arm() { return impl(*this).arm(); }
std::size_t Node::poll() { return impl(*this).poll(); }
std::size_t Node::connection_count() const { return impl(*this).pool().live(); }
std::size_t Node::proxies_up() const { return impl(*this).proxies_up(); }
std::size_t Node::proxies_left_out() const { return impl(*this).proxies_left_out(); }
bool Node::drained() const { return impl(*this).drained(); }

std::size_t Service::joined_count() const {
  return node_ == nullptr ? 0 : node_->joined_count(index_, serial_);
}
void Service::leave() {
  if (node_ != nullptr) node_->leave(index_, serial_, false);
}
void Service::shutdown() {
  if (node_ != nullptr) node_->leave(index_, serial_, true);
}
bool Service::left() const {
  return node_ == nullptr || !node_->is(index_, serial_) || node_->left(index_);
}

}  // namespace sanproxy::app

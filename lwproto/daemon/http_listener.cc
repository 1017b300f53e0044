#include "lwproto/daemon/http_listener.h"

#include <microhttpd.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <list>

#include "lwproto/base/unique_fd.h"

namespace sanproxy::daemon {
namespace {

constexpr std::size_t kBodyBytesMax = 4096;
constexpr int kBacklog = 64;

UniqueFd listening_socket(const SocketAddress& address) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(address.ip.to_string().c_str(), std::to_string(address.port).c_str(), &hints,
                  &found) != 0) {
    errno = EADDRNOTAVAIL;
    return {};
  }
  UniqueFd out(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int yes = 1, no = 0;
  (void)setsockopt(out.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  if (found->ai_family == AF_INET6) {
    (void)setsockopt(out.get(), IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no));
  }
  const bool good = ::bind(out.get(), found->ai_addr, found->ai_addrlen) == 0 &&
                    ::listen(out.get(), kBacklog) == 0;
  const int error = errno;
  freeaddrinfo(found);
  errno = error;
  return good ? std::move(out) : UniqueFd();
}

IpAddress ip_of(const sockaddr* address) {
  std::array<char, NI_MAXHOST> text{};
  const socklen_t length =
      address->sa_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  if (getnameinfo(address, length, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST) != 0) {
    return {};
  }
  std::string_view host = text.data();
  if (host.starts_with("::ffff:") && host.find('.') != std::string_view::npos) {
    host.remove_prefix(std::string_view("::ffff:").size());
  }
  const auto ip = IpAddress::parse(host.substr(0, host.find('%')));
  return ip.ok() ? *ip : IpAddress{};
}

std::string header_of(MHD_Connection* connection, const char* name) {
  const char* value = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, name);
  return value == nullptr ? "" : value;
}

// More than anybody here wants to say.
bool announces_too_much(MHD_Connection* connection) {
  const std::string text = header_of(connection, MHD_HTTP_HEADER_CONTENT_LENGTH);
  std::uint64_t bytes = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), bytes);
  return error == std::errc::result_out_of_range || bytes > kBodyBytesMax;
}

}  // namespace

struct HttpListener::Impl {
  struct Peer {
    int fd = -1;
    std::uint64_t turn = 0;  // of its last request, or of its coming: the lower, the longer ago
    bool ended = false;
  };
  struct Request {
    std::size_t body_bytes = 0;
    std::size_t page_bytes = 0;
  };

  void on_peer(MHD_Connection* connection, void** context, MHD_ConnectionNotificationCode what) {
    if (what == MHD_CONNECTION_NOTIFY_CLOSED) {
      const auto* gone = static_cast<Peer*>(*context);
      peers.remove_if([&](const Peer& one) { return &one == gone; });
      return;
    }
    const auto* info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    make_room();
    peers.push_back({info->connect_fd, ++turns});
    *context = &peers.back();
  }
  // By ending who has gone by itself, else who has asked for nothing for longest: it is closed when
  // its socket says so.
  void make_room() {
    Peer* oldest = nullptr;
    Peer* gone = nullptr;
    unsigned open = 0;
    for (Peer& one : peers) {
      if (one.ended) continue;
      ++open;
      if (oldest == nullptr || one.turn < oldest->turn) oldest = &one;
    }
    if (open < kConnectionsMax) return;
    for (Peer& one : peers) {
      if (!one.ended && has_gone(one) && (gone == nullptr || one.turn < gone->turn)) gone = &one;
    }
    if (gone != nullptr) oldest = gone;
    oldest->ended = true;
    (void)::shutdown(oldest->fd, SHUT_RDWR);
  }
  // Its end is there and nothing before it: it asks for nothing any more.
  static bool has_gone(const Peer& peer) {
    char byte = 0;
    return ::recv(peer.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
  }
  void on_completed(MHD_Connection* connection, Request* request) {
    if (request == nullptr) return;
    pages_bytes -= request->page_bytes;
    delete request;
    const auto* info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    if (info->socket_context != nullptr) static_cast<Peer*>(info->socket_context)->turn = ++turns;
  }
  MHD_Result on_request(MHD_Connection* connection, const char* path, const char* method,
                        std::size_t* body_bytes, void** context);
  // The page, or a 503 where all peers together are to read too much already.
  MHD_Result reply(MHD_Connection* connection, Request& request, const Page& page);
  static MHD_Result answer(MHD_Connection* connection, const Page& page);
  HttpRequest read(MHD_Connection* connection, const char* path, const char* method);

  Handle handle;
  MHD_Daemon* daemon = nullptr;
  std::list<Peer> peers;
  std::uint64_t turns = 0;
  std::size_t pages_bytes = 0;  // that peers have not read yet
};

HttpRequest HttpListener::Impl::read(MHD_Connection* connection, const char* path,
                                     const char* method) {
  HttpRequest out;
  out.method = method;
  out.path = path;
  out.content_type = header_of(connection, MHD_HTTP_HEADER_CONTENT_TYPE);
  const auto* info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
  out.peer = ip_of(info->client_addr);
  (void)MHD_get_connection_values_n(
      connection, MHD_GET_ARGUMENT_KIND,
      [](void* to, MHD_ValueKind, const char* name, std::size_t name_bytes, const char* value,
         std::size_t value_bytes) {
        static_cast<HttpRequest*>(to)->parameters.emplace_back(
            std::string(name, name_bytes),
            value == nullptr ? std::string() : std::string(value, value_bytes));
        return MHD_YES;
      },
      &out);
  return out;
}

MHD_Result HttpListener::Impl::reply(MHD_Connection* connection, Request& request,
                                     const Page& page) {
  if (page.body.size() > kPageBytesMax - pages_bytes) {
    return answer(connection, {503, "text/plain", "too many pages are being read\n"});
  }
  pages_bytes += page.body.size();
  request.page_bytes += page.body.size();
  return answer(connection, page);
}

MHD_Result HttpListener::Impl::answer(MHD_Connection* connection, const Page& page) {
  MHD_Response* response = MHD_create_response_from_buffer(
      page.body.size(), const_cast<char*>(page.body.data()), MHD_RESPMEM_MUST_COPY);
  if (response == nullptr) return MHD_NO;
  (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, page.content_type.c_str());
  if (page.http_status == MHD_HTTP_METHOD_NOT_ALLOWED) {
    (void)MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD, POST");
  }
  const MHD_Result result =
      MHD_queue_response(connection, static_cast<unsigned>(page.http_status), response);
  MHD_destroy_response(response);
  return result;
}

// Called when the headers are there, for each piece of a body, and at its end.
MHD_Result HttpListener::Impl::on_request(MHD_Connection* connection, const char* path,
                                          const char* method, std::size_t* body_bytes,
                                          void** context) {
  auto* request = static_cast<Request*>(*context);
  const std::string_view verb = method;
  if (request == nullptr) {
    *context = request = new Request();
    if (verb != "GET" && verb != "HEAD" && verb != "POST") {
      return reply(connection, *request, {405, "text/plain", "GET and POST, nothing else\n"});
    }
    if (announces_too_much(connection)) {
      return reply(connection, *request, {413, "text/plain", "a body of more than 4096 bytes\n"});
    }
    return MHD_YES;
  }
  if (*body_bytes != 0) {
    request->body_bytes += *body_bytes;
    *body_bytes = 0;
    return request->body_bytes > kBodyBytesMax ? MHD_NO : MHD_YES;
  }
  return reply(connection, *request,
               handle(read(connection, path, verb == "POST" ? "POST" : "GET")));
}

HttpListener::HttpListener() : impl_(std::make_unique<Impl>()) {}

Result<std::unique_ptr<HttpListener>> HttpListener::start(const SocketAddress& address,
                                                          Handle handle) {
  std::unique_ptr<HttpListener> self(new HttpListener());
  self->impl_->handle = std::move(handle);
  UniqueFd socket = listening_socket(address);
  if (!socket.valid()) {
    return Status::error(Code::kSystem, "cannot listen on the admin address", errno);
  }
  const MHD_AccessHandlerCallback on_request =
      [](void* impl, MHD_Connection* connection, const char* path, const char* method, const char*,
         const char*, std::size_t* body_bytes, void** context) {
        return static_cast<Impl*>(impl)->on_request(connection, path, method, body_bytes, context);
      };
  const MHD_RequestCompletedCallback on_completed = [](void* impl, MHD_Connection* connection,
                                                       void** context, MHD_RequestTerminationCode) {
    static_cast<Impl*>(impl)->on_completed(connection, static_cast<Impl::Request*>(*context));
    *context = nullptr;
  };
  const MHD_NotifyConnectionCallback on_peer = [](void* impl, MHD_Connection* connection,
                                                  void** context,
                                                  MHD_ConnectionNotificationCode what) {
    static_cast<Impl*>(impl)->on_peer(connection, context, what);
  };
  Impl* impl = self->impl_.get();
  // The socket is the library's now, which closes it. Twice as many connections: those that were
  // ended to make room are there until their turn comes.
  impl->daemon = MHD_start_daemon(
      MHD_USE_EPOLL_INTERNAL_THREAD, 0, nullptr, nullptr, on_request, impl,
      MHD_OPTION_LISTEN_SOCKET, socket.release(), MHD_OPTION_NOTIFY_COMPLETED, on_completed, impl,
      MHD_OPTION_NOTIFY_CONNECTION, on_peer, impl, MHD_OPTION_CONNECTION_LIMIT, 2 * kConnectionsMax,
      MHD_OPTION_CONNECTION_MEMORY_LIMIT, kRequestBytesMax, MHD_OPTION_CONNECTION_TIMEOUT,
      kTimeoutSeconds, MHD_OPTION_END);
  if (impl->daemon == nullptr) {
    return Status::error(Code::kSystem, "cannot serve the admin address", errno);
  }
  return self;
}

HttpListener::~HttpListener() {
  if (impl_->daemon != nullptr) MHD_stop_daemon(impl_->daemon);
}

}  // namespace sanproxy::daemon

#include "lwproto/fabric/tcp/tls_context.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/sslerr.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "lwproto/fabric/tcp/certificate_name.h"
#include "lwproto/fabric/tcp/handshake.h"

namespace sanproxy::fabric::tcp {
namespace {

// Several records a read(); a record is at most 16 KB.
constexpr std::size_t kReadAheadBytes = 64 * 1024;

// Of one connection. OpenSSL handles all that are there inside one SSL_read(); ours sends none, and
// a changed key is good for hundreds of gigabytes.
constexpr int kLateHandshakeMessagesMax = 64;

// What anybody in this thread has left in OpenSSL's queue would pass for an error of the next call.
void forget_errors() {
  if (ERR_peek_error() != 0) ERR_clear_error();
}

int socket_of(BIO* bio) {
  return static_cast<int>(reinterpret_cast<std::intptr_t>(BIO_get_data(bio)));
}

// OpenSSL's own socket BIO writes without MSG_NOSIGNAL.
int bio_write(BIO* bio, const char* from, int bytes) {
  BIO_clear_retry_flags(bio);
  const ssize_t n =
      ::send(socket_of(bio), from, static_cast<std::size_t>(bytes), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
    BIO_set_retry_write(bio);
  }
  return static_cast<int>(n);
}

int bio_read(BIO* bio, char* to, int bytes) {
  BIO_clear_retry_flags(bio);
  const ssize_t n = ::recv(socket_of(bio), to, static_cast<std::size_t>(bytes), MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
    BIO_set_retry_read(bio);
  }
  if (n == 0) BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
  return static_cast<int>(n);
}

long bio_control(BIO* bio, int command, long /*number*/, void* /*pointer*/) {
  if (command == BIO_CTRL_EOF) return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0 ? 1 : 0;
  return command == BIO_CTRL_FLUSH ? 1 : 0;
}

class TlsTransport final : public Transport {
 public:
  TlsTransport(UniqueFd fd, SSL* ssl, bool server)
      : Transport(std::move(fd)), ssl_(ssl), server_(server) {
    SSL_set_msg_callback(ssl, on_message);
    SSL_set_msg_callback_arg(ssl, this);
  }
  ~TlsTransport() override { SSL_free(ssl_); }

  Status establish() override;
  Io read(std::span<iovec> pieces) override;
  Io write(std::span<iovec> pieces) override;
  std::string peer_certificate_name() const override {
    const X509* certificate = SSL_get0_peer_certificate(ssl_);
    return certificate == nullptr ? std::string() : certificate_name(certificate);
  }
  bool secure() const override { return true; }
  bool holds_unread() const override { return SSL_has_pending(ssl_) == 1; }
  Status failure() const override { return failure_; }

 private:
  Status peek();
  Io stopped(int result, std::size_t bytes);
  static Status explain(unsigned long error);
  static void on_message(int is_ours, int version, int type, const void* bytes, std::size_t length,
                         SSL* ssl, void* transport);
  bool too_talkative() const { return late_messages_ > kLateHandshakeMessagesMax; }

  SSL* ssl_;
  bool server_;
  bool established_ = false;
  int late_messages_ = 0;  // of the peer's, that changed keys after the handshake
  bool peeked_ = false;
  Status failure_;
};

// What the peer did not like of what we showed.
const char* text_of_alert(int alert) {
  switch (alert) {
    case TLS1_AD_UNKNOWN_CA:
      return "the peer does not take our certificate: not of its authority";
    case SSL_AD_CERTIFICATE_EXPIRED:
      return "the peer does not take our certificate: expired, or not valid yet";
    case SSL_AD_CERTIFICATE_REVOKED:
      return "the peer does not take our certificate: revoked";
    case TLS13_AD_CERTIFICATE_REQUIRED:
      return "the peer wants a certificate";
    case SSL_AD_PROTOCOL_VERSION:
    case SSL_AD_HANDSHAKE_FAILURE:
      return "the peer speaks no TLS that we speak";
    default:
      return "the peer does not take our certificate";
  }
}

const char* text_of_verification(long result) {
  switch (result) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return "the peer's certificate is not good: expired";
    case X509_V_ERR_CERT_NOT_YET_VALID:
      return "the peer's certificate is not good: not valid yet";
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
      return "the peer's certificate is not good: not of our authority";
    case X509_V_ERR_INVALID_PURPOSE:
      return "the peer's certificate is not good: not for this use";
    default:
      return "the peer's certificate is not good";
  }
}

Status TlsTransport::explain(unsigned long error) {
  if (ERR_GET_LIB(error) == ERR_LIB_SSL && ERR_GET_REASON(error) > SSL_AD_REASON_OFFSET) {
    return Status::error(Code::kPermission,
                         text_of_alert(ERR_GET_REASON(error) - SSL_AD_REASON_OFFSET));
  }
  return Status::error(Code::kDisconnected, "TLS failed: does the peer speak it?");
}

void TlsTransport::on_message(int is_ours, int /*version*/, int type, const void* /*bytes*/,
                              std::size_t /*length*/, SSL* ssl, void* transport) {
  auto& self = *static_cast<TlsTransport*>(transport);
  if (is_ours != 0 || type != SSL3_RT_HANDSHAKE || !self.established_) return;
  ++self.late_messages_;
  // The way out of SSL_read() from here.
  if (self.too_talkative()) SSL_set_shutdown(ssl, SSL_get_shutdown(ssl) | SSL_RECEIVED_SHUTDOWN);
}

// A client without TLS is told so, rather than left with noise.
Status TlsTransport::peek() {
  std::byte first{};
  const ssize_t n = ::recv(fd(), &first, 1, MSG_PEEK | MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return Status::again();
  if (n <= 0) return Status::error(Code::kDisconnected, "the peer closed during the handshake");
  peeked_ = true;
  if (first == static_cast<std::byte>(kMagic & 0xff)) {
    return Status::error(Code::kUnsupported, "a peer that does not speak TLS");
  }
  return {};
}

Status TlsTransport::establish() {
  if (server_ && !peeked_) {
    if (Status peeked = peek(); !peeked.ok()) return peeked;
  }
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl_);
  if (result == 1) {
    if (SSL_get_verify_result(ssl_) != X509_V_OK || SSL_get0_peer_certificate(ssl_) == nullptr) {
      return Status::error(Code::kPermission, "the peer shows no certificate of our authority");
    }
    established_ = true;
    return {};
  }
  const int reason = SSL_get_error(ssl_, result);
  if (reason == SSL_ERROR_WANT_READ || reason == SSL_ERROR_WANT_WRITE) return Status::again();
  const long verified = SSL_get_verify_result(ssl_);
  const unsigned long error = ERR_peek_error();
  ERR_clear_error();
  if (verified != X509_V_OK) {
    return Status::error(Code::kPermission, text_of_verification(verified));
  }
  if (ERR_GET_LIB(error) == ERR_LIB_SSL &&
      ERR_GET_REASON(error) == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE) {
    return Status::error(Code::kPermission, "the peer shows no certificate");
  }
  return explain(error);
}

// What SSL_read() and SSL_write() say when they did nothing.
Io TlsTransport::stopped(int result, std::size_t bytes) {
  if (too_talkative()) {
    failure_ = Status::error(Code::kProtocol, "the peer changes its TLS keys too often");
    return {bytes, IoState::kFailed};
  }
  const int reason = SSL_get_error(ssl_, result);
  if (reason == SSL_ERROR_WANT_READ || reason == SSL_ERROR_WANT_WRITE) {
    return {bytes, IoState::kAgain};
  }
  if (reason == SSL_ERROR_ZERO_RETURN) return {bytes, IoState::kEnd};
  failure_ = explain(ERR_peek_error());
  ERR_clear_error();
  return {bytes, IoState::kFailed};
}

Io TlsTransport::read(std::span<iovec> pieces) {
  std::size_t total = 0;
  for (const iovec& piece : pieces) {
    std::size_t have = 0;
    while (have < piece.iov_len) {
      std::size_t n = 0;
      forget_errors();
      const int result = SSL_read_ex(ssl_, static_cast<std::byte*>(piece.iov_base) + have,
                                     piece.iov_len - have, &n);
      if (result != 1) return stopped(result, total);
      have += n;
      total += n;
    }
  }
  return {total, IoState::kMore};
}

Io TlsTransport::write(std::span<iovec> pieces) {
  std::size_t total = 0;
  for (const iovec& piece : pieces) {
    std::size_t done = 0;
    while (done < piece.iov_len) {
      std::size_t n = 0;
      // A record that could not leave stays inside OpenSSL; the next call offers the same bytes,
      // perhaps more behind them, which is what it asks for.
      forget_errors();
      const int result = SSL_write_ex(ssl_, static_cast<const std::byte*>(piece.iov_base) + done,
                                      piece.iov_len - done, &n);
      if (result != 1) return stopped(result, total);
      done += n;
      total += n;
    }
  }
  return {total, IoState::kMore};
}

}  // namespace

Result<std::unique_ptr<TlsContext>> TlsContext::create(const std::string& certificate_file,
                                                       const std::string& key_file,
                                                       const std::string& authority_file) {
  auto tls = std::make_unique<TlsContext>();
  tls->context_.reset(SSL_CTX_new(TLS_method()));
  tls->method_.reset(BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "sanproxy-tcp"));
  if (tls->context_ == nullptr || tls->method_ == nullptr) {
    return Status::error(Code::kSystem, "OpenSSL has no memory");
  }
  BIO_meth_set_write(tls->method_.get(), bio_write);
  BIO_meth_set_read(tls->method_.get(), bio_read);
  BIO_meth_set_ctrl(tls->method_.get(), bio_control);
  Status loaded = tls->load(certificate_file, key_file, authority_file);
  ERR_clear_error();
  if (!loaded.ok()) return loaded;
  return tls;
}

bool TlsContext::expired() const {
  const X509* own = SSL_CTX_get0_certificate(context_.get());
  return own == nullptr || X509_cmp_current_time(X509_get0_notAfter(own)) < 0;
}

Status TlsContext::load(const std::string& certificate_file, const std::string& key_file,
                        const std::string& authority_file) {
  SSL_CTX* context = context_.get();
  for (const auto& [file, text] : {std::pair{&certificate_file, "certificate_file: not readable"},
                                   {&key_file, "key_file: not readable"},
                                   {&authority_file, "authority_file: not readable"}}) {
    if (::access(file->c_str(), R_OK) != 0) return Status::error(Code::kSystem, text, errno);
  }
  if (SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) != 1) {
    return Status::error(Code::kUnsupported, "OpenSSL has no TLS 1.3");
  }
  if (SSL_CTX_use_certificate_chain_file(context, certificate_file.c_str()) != 1) {
    return Status::error(Code::kInvalidArgument, "certificate_file: no certificate in PEM there");
  }
  if (SSL_CTX_use_PrivateKey_file(context, key_file.c_str(), SSL_FILETYPE_PEM) != 1 ||
      SSL_CTX_check_private_key(context) != 1) {
    return Status::error(Code::kInvalidArgument, "key_file: not the certificate's key in PEM");
  }
  if (SSL_CTX_load_verify_locations(context, authority_file.c_str(), nullptr) != 1) {
    return Status::error(Code::kInvalidArgument, "authority_file: no certificate in PEM there");
  }
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  // Frames say themselves when a channel has ended, so an end without a farewell is no error here.
  SSL_CTX_set_options(context, SSL_OP_NO_TICKET | SSL_OP_IGNORE_UNEXPECTED_EOF);
  SSL_CTX_set_num_tickets(context, 0);
  SSL_CTX_set_max_early_data(context, 0);
  SSL_CTX_set_read_ahead(context, 1);
  SSL_CTX_set_default_read_buffer_len(context, kReadAheadBytes);
  return {};
}

std::unique_ptr<Transport> TlsContext::make_transport(UniqueFd fd, bool server) const {
  SSL* ssl = SSL_new(context_.get());
  BIO* bio = BIO_new(method_.get());
  if (ssl == nullptr || bio == nullptr) {
    SSL_free(ssl);
    BIO_free(bio);
    return nullptr;
  }
  BIO_set_data(bio, reinterpret_cast<void*>(static_cast<std::intptr_t>(fd.get())));
  BIO_set_init(bio, 1);
  SSL_set_bio(ssl, bio, bio);
  if (server) {
    SSL_set_accept_state(ssl);
  } else {
    SSL_set_connect_state(ssl);
  }
  return std::make_unique<TlsTransport>(std::move(fd), ssl, server);
}

}  // namespace sanproxy::fabric::tcp

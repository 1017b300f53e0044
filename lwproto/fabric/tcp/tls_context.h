// TlsContext: the certificate, key and authority of a fabric, and the transports made with them.
//
// Document: docs/tcp_fabric.md "TLS".
// Role: the only place that talks to OpenSSL's TLS. Owner: Core. Thread: the fabric's.
// Invariants:
//   1. TLS 1.3 only, both sides show a certificate of the authority, no early data, no resumption:
//      each connection proves who it is.
//   2. Nothing writes to a socket but with MSG_NOSIGNAL.
#pragma once

#include <openssl/ssl.h>

#include <memory>
#include <string>

#include "lwproto/fabric/tcp/transport.h"

namespace sanproxy::fabric::tcp {

class TlsContext {
 public:
  static Result<std::unique_ptr<TlsContext>> create(const std::string& certificate_file,
                                                    const std::string& key_file,
                                                    const std::string& authority_file);

  bool expired() const;  // our own certificate: no peer takes it

  // nullptr when OpenSSL has no memory.
  std::unique_ptr<Transport> make_transport(UniqueFd fd, bool server) const;

 private:
  struct FreeContext {
    void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  };
  struct FreeMethod {
    void operator()(BIO_METHOD* method) const { BIO_meth_free(method); }
  };

  Status load(const std::string& certificate_file, const std::string& key_file,
              const std::string& authority_file);

  std::unique_ptr<SSL_CTX, FreeContext> context_;
  std::unique_ptr<BIO_METHOD, FreeMethod> method_;
};

}  // namespace sanproxy::fabric::tcp

// certificate_name: the one name by which the owner of a certificate is known here.
//
// Document: docs/tcp_fabric.md "TLS".
// Role: the first DNS or URI of the subject's alternative names, else its common name. Names that
//   are empty, too long or hold anything but printable ASCII are none: they end up in logs and
//   are compared with what an operator has written.
// Thread: any; no state.
#pragma once

#include <openssl/x509.h>

#include <cstddef>
#include <string>

namespace sanproxy::fabric::tcp {

inline constexpr std::size_t kCertificateNameBytesMax = 255;

// "" when it has no usable name.
std::string certificate_name(const X509* certificate);

}  // namespace sanproxy::fabric::tcp

#include "lwproto/fabric/tcp/certificate_name.h"

#include <openssl/x509v3.h>

#include <algorithm>
#include <optional>
#include <string_view>

namespace sanproxy::fabric::tcp {
namespace {

std::string usable(const ASN1_STRING* string) {
  if (string == nullptr) return {};
  const int length = ASN1_STRING_length(string);
  if (length <= 0 || static_cast<std::size_t>(length) > kCertificateNameBytesMax) return {};
  const std::string_view text(reinterpret_cast<const char*>(ASN1_STRING_get0_data(string)),
                              static_cast<std::size_t>(length));
  const bool printable =
      std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~'; });
  return printable ? std::string(text) : std::string();
}

// The first that counts, usable or not.
std::optional<std::string> alternative_name(const X509* certificate) {
  auto* names = static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr));
  std::optional<std::string> found;
  for (int i = 0; !found && i < sk_GENERAL_NAME_num(names); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names, i);
    if (name->type == GEN_DNS || name->type == GEN_URI) found = usable(name->d.ia5);
  }
  GENERAL_NAMES_free(names);
  return found;
}

}  // namespace

std::string certificate_name(const X509* certificate) {
  // An authority that looks at alternative names may let the subject say anything.
  if (const auto name = alternative_name(certificate)) return *name;
  const X509_NAME* subject = X509_get_subject_name(certificate);
  const int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
  if (at < 0) return {};
  return usable(X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
}

}  // namespace sanproxy::fabric::tcp

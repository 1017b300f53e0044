#include "tests/lwproto/fabric/tcp/test_certificates.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "gtest/gtest.h"
#include "tests/lwproto/fabric/temporary_path.h"

namespace sanproxy::fabric::test {

namespace {

// Processes that a test program starts are to know its authority.
constexpr const char* kFolderVariable = "SANPROXY_TEST_CERTIFICATES";

}  // namespace

TestCertificates& TestCertificates::shared() {
  const char* inherited = std::getenv(kFolderVariable);
  static TestCertificates certificates(
      inherited != nullptr ? inherited : unused_path() + ".certificates", inherited == nullptr);
  static const bool made = [&] {
    if (inherited != nullptr) return true;
    certificates.make_authority("ca");
    certificates.make_certificate("server", "ca", "/CN=some server",
                                  "subjectAltName=DNS:server.test");
    certificates.make_certificate("client", "ca", "/CN=some client",
                                  "subjectAltName=URI:sanproxy://client");
    return ::setenv(kFolderVariable, certificates.folder_.c_str(), 1) == 0;
  }();
  (void)made;
  return certificates;
}

TestCertificates::TestCertificates(std::string folder, bool own)
    : folder_(std::move(folder)), owner_(own ? ::getpid() : 0) {
  std::filesystem::create_directories(folder_);
}

TestCertificates::~TestCertificates() {
  if (owner_ != ::getpid()) return;
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

void TestCertificates::openssl(const std::string& arguments) const {
  const std::string command =
      "cd '" + folder_ + "' && openssl " + arguments + " >>openssl.log 2>&1 </dev/null";
  const int result = std::system(command.c_str());
  if (result == 0) return;
  std::ifstream log(folder_ + "/openssl.log");
  ADD_FAILURE() << "openssl " << arguments << " failed:\n"
                << std::string(std::istreambuf_iterator<char>(log), {});
}

void TestCertificates::make_authority(const std::string& name) {
  openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj '/CN=" +
          name + "' -keyout " + name + ".key -out " + name + ".crt");
}

void TestCertificates::make_certificate(const std::string& name, const std::string& authority,
                                        const std::string& subject, const std::string& extensions,
                                        int days) {
  openssl("req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj '" + subject +
          "' -keyout " + name + ".key -out " + name + ".csr");
  std::ofstream(folder_ + "/" + name + ".ext") << extensions << '\n';
  openssl("x509 -req -in " + name + ".csr -CA " + authority + ".crt -CAkey " + authority +
          ".key -CAcreateserial -days " + std::to_string(days) + " -extfile " + name +
          ".ext -out " + name + ".crt");
}

TcpOptions TestCertificates::options(const std::string& name, const std::string& authority) const {
  TcpOptions options;
  options.certificate_file = file(name, ".crt");
  options.key_file = file(name, ".key");
  options.authority_file = file(authority, ".crt");
  return options;
}

}  // namespace sanproxy::fabric::test

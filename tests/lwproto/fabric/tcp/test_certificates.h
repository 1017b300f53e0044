// TestCertificates: an authority and certificates of it, made by the openssl program for one test
// program and removed with it.
#pragma once

#include <sys/types.h>

#include <string>

#include "lwproto/fabric/tcp/tcp_fabric.h"

namespace sanproxy::fabric::test {

class TestCertificates {
 public:
  // The authority "ca" and the certificates "server" (DNS:server.test) and "client"
  // (URI:sanproxy://client), made once; processes started later find the same.
  static TestCertificates& shared();

  // `own`: the folder goes with this object, in the process that made it.
  explicit TestCertificates(std::string folder, bool own = true);
  ~TestCertificates();
  TestCertificates(const TestCertificates&) = delete;
  TestCertificates& operator=(const TestCertificates&) = delete;

  void make_authority(const std::string& name);
  // `extensions` like "subjectAltName=DNS:a.test"; may be empty. `days` may be in the past.
  void make_certificate(const std::string& name, const std::string& authority,
                        const std::string& subject, const std::string& extensions, int days = 30);
  std::string file(const std::string& name, const char* ending) const {
    return folder_ + "/" + name + ending;
  }
  // TcpOptions with this certificate, trusting that authority.
  TcpOptions options(const std::string& name, const std::string& authority = "ca") const;

 private:
  void openssl(const std::string& arguments) const;

  std::string folder_;
  pid_t owner_;
};

}  // namespace sanproxy::fabric::test

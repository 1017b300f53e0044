// probe_node: application nodes that only tests need.
//
//   --mode digest    takes everything; at the client's FIN answers "COUNT ADLER32\n" and ends
//   --mode reject    refuses every connection
//   --mode shutdown  echoes; on SIGTERM shuts the service down for everybody
//   --mode connect   opens an outgoing connection to --remote and echoes there
//   --hash FILE      no node at all: prints the FNV-1a hash that appnode-httpd has for this file
#include <signal.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <string>

#include "sanproxy/appnode.h"

namespace {

namespace app = sanproxy::app;

app::Node* g_node = nullptr;

class Echo final : public app::ConnectionHandler {
 public:
  void on_data(app::Connection& connection, app::Received& data) override {
    for (const app::Bytes& piece : data.pieces())
      waiting_.insert(waiting_.end(), piece.begin(), piece.end());
    data.withhold();
    withheld_ += data.size();
    on_writable(connection);
  }
  void on_writable(app::Connection& connection) override {
    while (!waiting_.empty()) {
      std::array<std::byte, 4096> piece;
      const std::size_t length = std::min(piece.size(), waiting_.size());
      std::copy_n(waiting_.begin(), length, piece.begin());
      const std::size_t sent = connection.send(app::Bytes(piece.data(), length));
      waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(sent));
      connection.open_window(sent);
      if (sent < length) return;
    }
    if (done_) connection.finish();
  }
  void on_end_of_stream(app::Connection& connection) override {
    done_ = true;
    on_writable(connection);
  }
  void on_closed(app::Connection&, app::CloseCode code) override {
    std::printf("closed: %s\n", app::to_string(code));
    std::fflush(stdout);
  }

 private:
  std::deque<std::byte> waiting_;
  std::size_t withheld_ = 0;
  bool done_ = false;
};

class Digest final : public app::ConnectionHandler {
 public:
  void on_data(app::Connection&, app::Received& data) override {
    for (const app::Bytes& piece : data.pieces()) add(piece);
  }
  void on_end_of_stream(app::Connection& connection) override {
    const std::uint32_t sum = b_ << 16 | a_;
    connection.send(std::to_string(count_) + " " + std::to_string(sum) + "\n");
    connection.finish();
  }

 private:
  // RFC 1950, 8.2; 5552 is the most that cannot overflow 32 bits.
  void add(app::Bytes bytes) {
    count_ += bytes.size();
    while (!bytes.empty()) {
      const app::Bytes part = bytes.first(std::min<std::size_t>(bytes.size(), 5552));
      for (const std::byte byte : part) {
        a_ += static_cast<std::uint32_t>(byte);
        b_ += a_;
      }
      a_ %= 65521;
      b_ %= 65521;
      bytes = bytes.subspan(part.size());
    }
  }

  std::uint64_t count_ = 0;
  std::uint32_t a_ = 1;
  std::uint32_t b_ = 0;
};

int print_hash(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return 2;
  std::uint64_t hash = 0xcbf2'9ce4'8422'2325;
  std::array<unsigned char, 65536> piece;
  while (const std::size_t length = std::fread(piece.data(), 1, piece.size(), file)) {
    for (std::size_t i = 0; i < length; ++i) hash = (hash ^ piece[i]) * 0x100'0000'01b3;
  }
  std::fclose(file);
  std::printf("%016llx\n", static_cast<unsigned long long>(hash));
  return 0;
}

void on_signal(int) { g_node->stop(); }

int serve(app::Node& node, const std::string& mode, const std::string& service) {
  auto joined = node.join(service, [&](app::Request& request) {
    if (mode == "reject") return request.reject();
    if (mode == "digest") {
      request.accept(std::make_unique<Digest>());
    } else {
      request.accept(std::make_unique<Echo>());
    }
  });
  if (!joined.ok()) {
    std::fprintf(stderr, "probe_node: %s: %s\n", service.c_str(),
                 joined.status().to_string().c_str());
    return 2;
  }
  node.run();
  if (mode == "shutdown") {
    joined->shutdown();
  } else {
    joined->leave();
  }
  for (int i = 0; i < 100 && !node.drained(); ++i) node.wait(50);
  return 0;
}

int echo_blocking(app::NodeOptions options, const std::string& service, const std::string& remote) {
  auto stream = app::BlockingStream::connect(remote, service, std::move(options));
  app::Status status = stream.status();
  std::array<std::byte, 65536> buffer;
  while (status.ok()) {
    const auto n = stream->read(buffer);
    if (n.ok() && *n == 0) return 0;
    status = n.ok() ? stream->write({buffer.data(), *n}) : n.status();
  }
  std::fprintf(stderr, "probe_node: %s\n", status.to_string().c_str());
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App cli("probe_node: application nodes that only tests need");
  app::NodeOptions options;
  std::string mode = "digest";
  std::string service;
  std::string remote;
  std::string hash_path;
  cli.add_option("--proxy", options.proxies, "a proxy node's address");
  cli.add_option("--service", service, "an address to serve");
  cli.add_option("--hash", hash_path, "print the hash of this file");
  cli.add_option("--mode", mode, "digest, reject, shutdown, connect or connect-blocking");
  cli.add_option("--remote", remote, "connect: to whom");
  cli.add_option("--name", options.name, "shown by the proxy");
  cli.add_option("--tls-certificate", options.tls.certificate, "with the next two: use TLS");
  cli.add_option("--tls-key", options.tls.key, "");
  cli.add_option("--tls-ca", options.tls.ca, "");
  CLI11_PARSE(cli, argc, argv);
  if (!hash_path.empty()) return print_hash(hash_path);
  if (mode == "connect-blocking") return echo_blocking(std::move(options), service, remote);
  Echo outgoing;
  bool asked = false;
  app::Node* self = nullptr;
  if (mode == "connect") {
    options.on_joined = [&](std::string_view, std::string_view) {
      if (asked) return;
      asked = true;
      const auto connection = self->connect(remote, outgoing);
      if (!connection.ok()) std::fprintf(stderr, "%s\n", connection.status().to_string().c_str());
    };
  }
  auto node = app::Node::create(std::move(options));
  if (!node.ok()) {
    std::fprintf(stderr, "probe_node: %s\n", node.status().to_string().c_str());
    return 2;
  }
  self = g_node = node->get();
  signal(SIGTERM, on_signal);
  signal(SIGINT, on_signal);
  return serve(**node, mode, service);
}

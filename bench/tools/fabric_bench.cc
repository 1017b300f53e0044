// fabric_bench: throughput, round trips and small messages over any fabric, without a proxy.
//   fabric_bench serve ADDRESS          waits for clients, prints READY; ends with the last one
//   fabric_bench run ADDRESS --work W   prints one JSON object
//   fabric_bench raw-serve, raw-run     the same for one raw TCP stream, "tcp://127.0.0.1:7500"
#include <sys/epoll.h>

#include <CLI/CLI.hpp>
#include <array>
#include <cerrno>
#include <cstdio>
#include <map>

#include "bench/tools/fabric_works.h"
#include "bench/tools/measurement.h"
#include "bench/tools/raw_tcp.h"
#include "lwproto/base/unique_fd.h"
#include "lwproto/fabric/address.h"
#include "lwproto/fabric/link_parameters.h"
#include "lwproto/fabric/shm/shm_fabric.h"
#include "lwproto/fabric/tcp/tcp_fabric.h"
#include "lwproto/fabric/verbs/verbs_fabric.h"

namespace sanproxy::bench {
namespace {

struct Options {
  std::string address;
  std::string link;
  bool spin = false;
  std::uint32_t clients = 1;  // serve: so many, then the end
  std::uint32_t depth = 512;
  std::uint32_t send_depth = 1024;
  double connect_seconds = 10;
  LoadOptions load;
};

[[noreturn]] void die(const char* what, const Status& status) {
  std::fprintf(stderr, "fabric_bench: %s: %s\n", what, status.to_string().c_str());
  std::exit(1);
}

Result<std::unique_ptr<fabric::Fabric>> make_by_scheme(const std::string& scheme) {
  if (scheme == "shm") return fabric::make_shm_fabric();
  if (scheme == "verbs") return fabric::make_verbs_fabric();
  if (scheme == "tcp") return fabric::make_tcp_fabric();
  return Status::error(Code::kUnsupported, "not one that this program knows");
}

std::unique_ptr<fabric::Fabric> make_fabric(const std::string& address) {
  auto parsed = fabric::FabricAddress::parse(address);
  if (!parsed.ok()) die("the address", parsed.status());
  auto made = make_by_scheme(parsed->scheme);
  if (!made.ok()) die("the fabric", made.status());
  return std::move(*made);
}

// A fabric and the epoll set that its owner sleeps in, as the owners of the product do.
class Owned {
 public:
  explicit Owned(const std::string& address)
      : fabric_(make_fabric(address)), set_(::epoll_create1(EPOLL_CLOEXEC)) {
    fabric_->wake_in(set_.get());
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fabric_->event_fd();
    if (::epoll_ctl(set_.get(), EPOLL_CTL_ADD, fabric_->event_fd(), &event) != 0) {
      die("the epoll set", Status::error(Code::kSystem, "epoll_ctl", errno));
    }
  }

  fabric::Fabric& operator*() { return *fabric_; }
  fabric::Fabric* operator->() { return fabric_.get(); }
  void wait(bool spin) {
    if (!spin && fabric_->arm()) {
      std::array<epoll_event, 4> events;
      // The limit lets a load see the end of its time.
      ::epoll_wait(set_.get(), events.data(), events.size(), 100);
    }
    fabric_->disarm();
  }

 private:
  std::unique_ptr<fabric::Fabric> fabric_;
  UniqueFd set_;
};

fabric::EndpointOptions endpoint_options(const Options& options) {
  fabric::EndpointOptions out;
  out.receive_depth = options.depth;
  out.send_depth = options.send_depth;
  auto link = fabric::parse_link(options.link);
  if (!link.ok()) die("--link", link.status());
  out.link = *link;
  return out;
}

// A loop that spins looks after its channel, and as seldom as those of our nodes after all else.
bool run_session(Session& session, bool spin) {
  constexpr int kRunsPerRound = 256;
  for (int i = 0; i < (spin ? kRunsPerRound : 1); ++i) {
    if (!session.run()) return false;
  }
  return true;
}

int serve(const Options& options) {
  Owned fabric(options.address);
  fabric::EndpointOptions endpoint = endpoint_options(options);
  endpoint.link = {};
  auto listening = fabric->listen(options.address, endpoint);
  if (!listening.ok()) die("listen", listening.status());
  std::puts("READY");
  std::fflush(stdout);
  std::vector<std::unique_ptr<Session>> sessions;
  std::uint32_t ended = 0;
  while (ended < options.clients) {
    // Looked for no longer than needed: it takes time from those who are measured.
    const bool more = sessions.size() + ended < options.clients;
    auto request = more ? (*listening)->poll() : Result<fabric::ConnectRequest>(Status::again());
    if (request.ok()) {
      Greeting peers;
      if (!read_greeting(request->private_data, peers)) {
        (*listening)->reject(*request, {});
        continue;
      }
      const Greeting ours = make_greeting({.work = peers.work,
                                           .message_bytes = peers.message_bytes,
                                           .report_bytes = peers.report_bytes},
                                          endpoint);
      auto accepted = (*listening)->accept(*request, bytes_of(ours));
      if (!accepted.ok()) die("accept", accepted.status());
      sessions.push_back(make_server(std::move(*accepted), ours, peers));
    }
    ended += static_cast<std::uint32_t>(std::erase_if(
        sessions, [&](const auto& session) { return !run_session(*session, options.spin); }));
    if (ended < options.clients) fabric.wait(options.spin && !sessions.empty());
  }
  return 0;
}

std::unique_ptr<Session> connect(Owned& fabric, const Options& options) {
  const fabric::EndpointOptions endpoint = endpoint_options(options);
  const Greeting ours = make_greeting(options.load, endpoint);
  const std::uint64_t give_up_ns =
      monotonic_ns() + static_cast<std::uint64_t>(options.connect_seconds * 1e9);
  auto connecting = fabric->connect(options.address, bytes_of(ours), endpoint);
  if (!connecting.ok()) die("connect", connecting.status());
  for (;;) {
    auto connected = (*connecting)->poll();
    if (connected.ok()) {
      Greeting peers;
      if (!read_greeting((*connecting)->private_data(), peers)) {
        die("connect", Status::error(Code::kProtocol, "the server is no fabric_bench"));
      }
      return make_client(std::move(*connected), ours, peers, options.load);
    }
    if (!connected.status().is_again()) die("connect", connected.status());
    if (monotonic_ns() > give_up_ns) die("connect", Status::error(Code::kTimeout, "no answer"));
    fabric.wait(false);
  }
}

const std::map<std::string, Work> kWorks = {{"throughput", Work::kThroughput},
                                            {"round-trips", Work::kRoundTrips},
                                            {"streams", Work::kStreams},
                                            {"messages", Work::kMessages},
                                            {"channel-round-trips", Work::kChannelTrips}};

int run(const Options& options) {
  Owned fabric(options.address);
  auto session = connect(fabric, options);
  Measurement measurement({});
  measurement.start();
  while (run_session(*session, options.spin)) {
    if (!session->busy()) fabric.wait(options.spin);
  }
  measurement.stop();
  if (session->error() != nullptr) {
    std::fprintf(stderr, "fabric_bench: %s\n", session->error());
    return 1;
  }
  const char* work = "";
  for (const auto& [name, value] : kWorks) {
    if (value == options.load.work) work = name.c_str();
  }
  std::printf(
      "{\"fabric\": \"%s\", \"work\": \"%s\", \"message_bytes\": %u, \"spin\": %s, %s, "
      "\"cpu_s\": %s}\n",
      fabric->name(), work, options.load.message_bytes, options.spin ? "true" : "false",
      session->report().c_str(), measurement.cpu_json().c_str());
  return 0;
}

int main_of(int argc, char** argv) {
  CLI::App app("throughput, round trips and small messages over a fabric");
  app.require_subcommand(1);
  Options options;
  auto* server = app.add_subcommand("serve", "wait for clients");
  auto* client = app.add_subcommand("run", "put a load on a server and print one JSON object");
  for (CLI::App* one : {server, client}) {
    one->add_option("address", options.address, "such as verbs://10.9.0.1:7471")->required();
    one->add_flag("--spin", options.spin, "poll without sleeping");
    one->add_option("--depth", options.depth, "receive buffers")->check(CLI::Range(4, 16384));
    one->add_option("--send-depth", options.send_depth, "transfers by reference under way")
        ->check(CLI::Range(1, 16384));
  }
  server->add_option("--clients", options.clients, "end after so many");
  client
      ->add_option(
          "--work", options.load.work,
          "of an endpoint: throughput, round-trips; of a channel: streams (many streams of small "
          "messages), messages (one stream), channel-round-trips")
      ->required()
      ->transform(CLI::CheckedTransformer(kWorks));
  client->add_option("--bytes", options.load.message_bytes, "of a message")
      ->check(CLI::Range(1, 65536));
  client->add_option("--streams", options.load.streams)->check(CLI::Range(1, 100000));
  client
      ->add_option("--report-bytes", options.load.report_bytes,
                   "the server tells what it has got each time it got so many")
      ->check(CLI::Range(4096, 1 << 24));
  client->add_option("--link", options.link, "link parameters, such as window=1MiB");
  auto* raw_server = app.add_subcommand("raw-serve", "one raw TCP connection, read to its end");
  auto* raw_client =
      app.add_subcommand("raw-run", "one send() a message over a raw TCP connection");
  for (CLI::App* one : {raw_server, raw_client}) {
    one->add_option("address", options.address, "such as tcp://127.0.0.1:7500")->required();
  }
  raw_client->add_option("--bytes", options.load.message_bytes, "of a message")
      ->check(CLI::Range(1, 1 << 20));
  for (CLI::App* one : {client, raw_client}) {
    one->add_option("--seconds", options.load.seconds)->check(CLI::Range(0.1, 600.0));
    one->add_option("--warmup", options.load.warmup_seconds)->check(CLI::Range(0.0, 60.0));
  }
  CLI11_PARSE(app, argc, argv);
  const bool small_only =
      options.load.work == Work::kStreams || options.load.work == Work::kChannelTrips;
  if (small_only && options.load.message_bytes > 1024) {
    std::fprintf(stderr, "fabric_bench: this work takes messages of at most 1024 bytes\n");
    return 2;
  }
  if (raw_server->parsed() || raw_client->parsed()) {
    auto address = fabric::FabricAddress::parse(options.address);
    if (!address.ok()) die("the address", address.status());
    if (raw_server->parsed()) return serve_raw(address->socket);
    return run_raw(address->socket,
                   {options.load.message_bytes, options.load.seconds, options.load.warmup_seconds});
  }
  return server->parsed() ? serve(options) : run(options);
}

}  // namespace
}  // namespace sanproxy::bench

int main(int argc, char** argv) { return sanproxy::bench::main_of(argc, argv); }

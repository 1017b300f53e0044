// appnode-echo: the smallest useful application nodes. Start reading here.
//
//   --mode echo     sends back what comes; when the client ends its direction, sends the rest and
//                   ends too
//   --mode sink     takes everything, sends nothing
//   --mode source   sends --bytes N of a repeating pattern (0: without end), then FIN; binds at the
//                   handshake (--immediate), since its clients need not say anything
//   --stall         accepts connections and never takes a byte from them
#include <algorithm>
#include <deque>

#include "appnode-lib/examples/example_program.h"
#include "lwproto/daemon/command_line.h"

namespace {

namespace app = sanproxy::app;

// Sends back what comes. What the client does not take yet is kept: the bytes stay where they
// are, and because they are kept the client's window fills up and it stops sending. So a client
// that never reads costs us one window, and no copy.
class Echo final : public app::ConnectionHandler {
 public:
  void on_data(app::Connection& connection, app::Received& data) override {
    std::size_t sent = 0;
    if (waiting_.empty()) {
      for (const app::Bytes& piece : data.pieces()) {
        const std::size_t n = connection.send(piece);
        sent += n;
        if (n < piece.size()) break;
      }
    }
    if (sent == data.size()) return;
    app::Borrowed rest = data.keep();
    if (!rest.valid()) return connection.reset();  // NodeOptions::kept_bytes_max is reached
    if (waiting_.empty()) sent_of_first_ = sent;
    waiting_.push_back(std::move(rest));
  }

  void on_writable(app::Connection& connection) override {
    while (!waiting_.empty()) {
      std::size_t skip = sent_of_first_;
      for (const app::Bytes& piece : waiting_.front().pieces()) {
        const std::size_t from = std::min(skip, piece.size());
        const std::size_t n = connection.send(piece.subspan(from));
        sent_of_first_ += n;
        if (from + n < piece.size()) return;  // on_writable() comes again
        skip -= from;
      }
      waiting_.pop_front();
      sent_of_first_ = 0;
    }
    if (client_is_done_) connection.finish();
  }

  void on_end_of_stream(app::Connection& connection) override {
    client_is_done_ = true;
    if (waiting_.empty()) connection.finish();
  }

 private:
  std::deque<app::Borrowed> waiting_;
  std::size_t sent_of_first_ = 0;
  bool client_is_done_ = false;
};

// One object for all connections: there is nothing to remember.
class Sink final : public app::ConnectionHandler {
 public:
  void on_data(app::Connection&, app::Received&) override {}  // the bytes go back by themselves
};

class Stall final : public app::ConnectionHandler {
 public:
  void on_data(app::Connection&, app::Received& data) override { data.withhold(); }
  void on_end_of_stream(app::Connection&) override {}
};

// Sends from registered memory: the bytes are written once, at the start, and never touched again.
class Source final : public app::ConnectionHandler {
 public:
  Source(const app::RegisteredMemory& pattern, std::uint64_t bytes)
      : pattern_(pattern), left_(bytes), endless_(bytes == 0) {}

  void on_data(app::Connection&, app::Received&) override {}
  void on_writable(app::Connection& connection) override {
    while (endless_ || left_ > 0) {
      const std::size_t offset = position_ % pattern_.bytes().size();
      std::size_t n = pattern_.bytes().size() - offset;
      if (!endless_) n = static_cast<std::size_t>(std::min<std::uint64_t>(n, left_));
      const std::size_t sent = connection.send(pattern_, offset, n);
      position_ += sent;
      if (!endless_) left_ -= sent;
      if (sent < n) return;  // on_writable() comes again
    }
    connection.finish();
  }
  void on_end_of_stream(app::Connection& connection) override {
    if (endless_) connection.close();  // else go on until everything is sent
  }

 private:
  const app::RegisteredMemory& pattern_;
  std::uint64_t position_ = 0;
  std::uint64_t left_;
  bool endless_;
};

constexpr std::size_t kPatternBytes = std::size_t{1} << 20;

int run(const examples::CommonOptions& common, const std::string& mode, bool stall,
        std::uint64_t bytes) {
  auto program = examples::ExampleProgram::create(common);
  if (program == nullptr) return 2;
  if (stall) {
    static Stall handler;
    return program->serve([](app::Request& request) { request.accept(handler); });
  }
  if (mode == "sink") {
    static Sink handler;
    return program->serve([](app::Request& request) { request.accept(handler); });
  }
  if (mode == "echo") {
    return program->serve([](app::Request& request) { request.accept(std::make_unique<Echo>()); });
  }
  auto pattern = program->node().register_memory(kPatternBytes);
  if (!pattern.ok()) return 2;
  for (std::size_t i = 0; i < kPatternBytes; ++i) {
    pattern->bytes()[i] = static_cast<std::byte>("0123456789abcdef"[i % 16]);
  }
  return program->serve([&](app::Request& request) {
    auto source = std::make_unique<Source>(*pattern, bytes);
    Source& handler = *source;
    handler.on_writable(request.accept(std::move(source)));  // start sending
  });
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App cli("appnode-echo: an application node that echoes, swallows or produces bytes");
  examples::CommonOptions common;
  std::string mode = "echo";
  bool stall = false;
  std::uint64_t bytes = 0;
  examples::add_common_options(cli, common);
  cli.add_option("--mode", mode, "echo, sink or source (which implies --immediate)")
      ->check(CLI::IsMember({"echo", "sink", "source"}));
  cli.add_option("--bytes", bytes, "source: this many, then FIN; 0 is without end")
      ->check(CLI::Range(std::uint64_t{0}, std::uint64_t{1} << 40));
  cli.add_flag("--stall", stall, "Accept connections and never take a byte");
  if (const auto status = sanproxy::daemon::parse_command_line(cli, argc, argv)) return *status;
  if (mode == "source" && !stall) common.immediate = true;
  return run(common, mode, stall, bytes);
}

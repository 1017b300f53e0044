// appnode-httpd: an HTTP/1.x server as an application node. It does no TCP and has no sockets.
//
// What it answers is in http_site.h; how a connection is served, in http_session.h.

#include <stdexcept>

#include "appnode-lib/examples/example_program.h"
#include "appnode-lib/examples/http_session.h"
#include "appnode-lib/examples/http_site.h"
#include "lwproto/daemon/command_line.h"
#include "lwproto/daemon/log.h"

int main(int argc, char** argv) {
  CLI::App cli("appnode-httpd: a web server that serves through sanproxy");
  examples::CommonOptions common;
  std::string root;
  std::size_t cache_mb = 64;
  examples::add_common_options(cli, common);
  cli.add_option("--root", root, "Serve the files of this directory")
      ->check(CLI::ExistingDirectory);
  cli.add_option("--cache-mb", cache_mb, "Files to keep in registered memory")
      ->check(CLI::Range(0, 65536));
  if (const auto status = sanproxy::daemon::parse_command_line(cli, argc, argv)) return *status;

  examples::HttpSessions sessions;  // outlives the Node, which ends what is left of them
  auto program = examples::ExampleProgram::create(common);
  if (program == nullptr) return 2;
  try {
    examples::HttpSite site(program->node(), root, cache_mb << 20);
    return program->serve(
        [&](auto& request) { examples::HttpSession::accept(request, site, sessions); },
        [&] { examples::HttpSession::end_idle(sessions); });
  } catch (const std::runtime_error& error) {
    spdlog::error("{}", error.what());
    return 2;
  }
}

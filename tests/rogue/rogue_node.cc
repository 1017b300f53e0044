// rogue_node: an application node that breaks the rules, one case at a time.
//
//   rogue_node --list                                       every case with the rule that it breaks
//   rogue_node --case NAME --proxy ADDRESS --service IP:PORT --foreign IP:PORT --key NAME:FILE
//
// Exit code 0: the proxy answered as docs/wire_format.md says. 1: it did not (said on stdout).
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>

#include "tests/rogue/cases.h"

namespace sanproxy::rogue {
namespace {

std::vector<Case> all_cases() {
  std::vector<Case> out;
  for (auto make :
       {hello_cases, transfer_cases, message_cases, stream_cases, service_cases, active_cases,
        resource_cases, shm_cases, key_cases, packet_cases, health_cases}) {
    for (Case& one : make()) out.push_back(std::move(one));
  }
  return out;
}

int run(const std::vector<Case>& cases, const std::vector<std::string>& names,
        const Context& context) {
  int failed = 0;
  for (const std::string& name : names) {
    const auto found =
        std::find_if(cases.begin(), cases.end(), [&](const Case& one) { return one.name == name; });
    if (found == cases.end()) {
      std::printf("%s: no such case\n", name.c_str());
      return 2;
    }
    const Verdict verdict = found->run(context);
    std::printf("%s: %s\n", name.c_str(), verdict.empty() ? "as it should be" : verdict.c_str());
    std::fflush(stdout);
    failed += verdict.empty() ? 0 : 1;
  }
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace sanproxy::rogue

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // the proxy hangs up on us, as it should
  using namespace sanproxy;
  CLI::App app("Breaks the rules of the lightweight protocol, one case at a time.");
  bool list = false;
  std::vector<std::string> names;
  std::string service = "10.77.0.10:6666";
  std::string foreign = "10.77.0.10:7";
  rogue::Context context;
  app.add_flag("--list", list, "list every case with the rule that it breaks");
  app.add_option("--case", names, "run this case (repeatable)");
  app.add_option("--proxy", context.proxy, "the proxy node's address");
  app.add_option("--packets", context.packets, "where network nodes connect");
  app.add_option("--service", service, "a service of our own");
  app.add_option("--key", context.key, "NAME:FILE, a key that the proxy has too");
  app.add_option("--foreign", foreign, "a service of somebody else");
  app.add_option("--divide", context.divide, "make floods so many times smaller")
      ->check(CLI::Range(1, 100));
  CLI11_PARSE(app, argc, argv);
  const std::vector<rogue::Case> cases = rogue::all_cases();
  if (list) {
    for (const rogue::Case& one : cases) {
      std::printf("%s\t%s\n", one.name.c_str(), one.rule.c_str());
    }
    return 0;
  }
  const auto own = SocketAddress::parse(service);
  const auto other = SocketAddress::parse(foreign);
  if (!own.ok() || !other.ok() || context.proxy.empty()) {
    std::fprintf(stderr, "rogue_node: --proxy, --service and --foreign need addresses\n");
    return 2;
  }
  context.service = *own;
  context.foreign = *other;
  return rogue::run(cases, names, context);
}

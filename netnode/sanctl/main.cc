// sanctl: looks at and steers one node, or a whole cluster.
#include <CLI/CLI.hpp>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <sstream>

#include "lwproto/base/socket_address.h"
#include "lwproto/cluster/model.h"
#include "netnode/sanctl/commands.h"
#include "netnode/sanctl/completion.h"

namespace {

using namespace sanproxy::sanctl;  // NOLINT: this is its program

constexpr const char* kDefaultAdmin = "127.0.0.1:9477";

// Which command was chosen; run once everything is parsed.
using Chosen = std::function<void()>;

void add_common(CLI::App& app, Options& options, std::string& password_file) {
  auto* admin = app.add_option("--admin", options.admin,
                               "One node: the IP:PORT of its admin endpoint (default "
                               "127.0.0.1:9477; SANPROXY_ADMIN)");
  app.add_option("--etcd", options.etcd.endpoints,
                 "The whole cluster: http://HOST:PORT,... (SANPROXY_ETCD)")
      ->delimiter(',')
      ->allow_extra_args(false)  // the next word is no URL
      ->excludes(admin);
  app.add_option("--cluster", options.cluster,
                 "Name of the cluster (default: default; SANPROXY_CLUSTER)");
  app.add_option("--prefix", options.prefix, "Of the cluster's keys in etcd (default /sanproxy)");
  app.add_option("--user", options.etcd.user, "etcd user");
  app.add_option("--password-file", password_file, "etcd password: the first line of this file");
  app.add_option("--ca", options.etcd.ca, "PEM: who signs etcd's certificate");
  app.add_option("--certificate", options.etcd.certificate, "PEM: our certificate for etcd");
  app.add_option("--key", options.etcd.key, "PEM: its key");
  app.add_flag("--json", options.json, "Answer in JSON");
}

// What the environment says, where the command line says nothing. (CLI11 would count it as said
// there.)
void add_environment(const CLI::App& app, Options& options) {
  const auto take = [](const char* name, std::string& to) {
    const char* value = std::getenv(name);
    if (value != nullptr && *value != '\0') to = value;
  };
  if (app.count("--cluster") == 0) take("SANPROXY_CLUSTER", options.cluster);
  if (app.count("--admin") + app.count("--etcd") != 0) return;
  take("SANPROXY_ADMIN", options.admin);
  std::string urls;
  take("SANPROXY_ETCD", urls);
  std::istringstream in(urls);
  for (std::string url; std::getline(in, url, ',');) options.etcd.endpoints.push_back(url);
}

// CLI::Range lets it through.
std::string check_number(const std::string& text) {
  return std::isnan(std::strtod(text.c_str(), nullptr)) ? text + " is not a number" : "";
}

CLI::App* add_command(CLI::App& app, const std::string& name, const std::string& what,
                      const std::string& example) {
  CLI::App* sub = app.add_subcommand(name, what);
  sub->footer("Example: " + example);
  sub->fallthrough();
  return sub;
}

void add_show(CLI::App& app, const Options& options, Chosen& chosen) {
  add_command(app, "status", "What there is, and whether it is well", "sanctl status")
      ->callback([&] { chosen = [&] { show_status(options); }; });
  add_command(app, "services", "Services: balance, members, connections",
              "sanctl services --etcd http://10.9.0.1:2379")
      ->callback([&] { chosen = [&] { show_services(options); }; });

  auto* nodes = add_command(app, "nodes", "Proxies, network nodes and application nodes",
                            "sanctl nodes --kind appnode");
  const auto kind = std::make_shared<std::string>();
  nodes->add_option("--kind", *kind, "proxy, netnode or appnode")
      ->check(CLI::IsMember({"proxy", "netnode", "appnode"}));
  nodes->callback(
      [&options, &chosen, kind] { chosen = [&options, kind] { show_nodes(options, *kind); }; });

  auto* connections =
      add_command(app, "connections", "Connections, those in TIME-WAIT too",
                  "sanctl connections --service 10.77.0.10:80 --state ESTABLISHED --limit 20");
  const auto what = std::make_shared<ConnectionsOptions>();
  for (const auto& [name, text] : std::initializer_list<std::pair<const char*, const char*>>{
           {"service", "Only to this IP:PORT"},
           {"state", "Only in this TCP state"},
           {"client", "Only from this IP, or IP:PORT"},
           {"node", "Only of this application node"}}) {
    connections->add_option_function<std::string>(
        std::string("--") + name,
        [what, key = std::string(name)](const std::string& v) { what->filters[key] = v; }, text);
  }
  connections->add_option("--limit", what->limit, "At most so many (default 100)")
      ->check(CLI::Range(1, 100'000));
  connections->callback([&options, &chosen, what] {
    chosen = [&options, what] { show_connections(options, *what); };
  });

  auto* top = add_command(app, "top", "Rates, refreshed", "sanctl top --interval 2");
  const auto how = std::make_shared<TopOptions>();
  top->add_option("--interval", how->interval_s, "Seconds between two looks (default 1)")
      ->check(CLI::Range(0.05, 3600.0))
      ->check(check_number);
  top->add_option("--count", how->count, "End after so many tables (default: Ctrl-C)");
  top->callback(
      [&options, &chosen, how] { chosen = [&options, how] { show_top(options, *how); }; });
}

void add_drains(CLI::App& app, const Options& options, Chosen& chosen) {
  const auto add = [&](const char* name, const char* text, const char* example) {
    auto* sub = add_command(app, name, text, example);
    auto how = std::make_shared<DrainOptions>();
    sub->add_option("NODE", how->name, "Its name, as sanctl nodes shows it")->required();
    sub->add_option("--kind", how->kind, "proxy, netnode or appnode, where two have that name")
        ->check(CLI::IsMember({"proxy", "netnode", "appnode"}));
    return std::pair(sub, how);
  };
  const auto [out, out_how] =
      add("drain", "Out for new sessions; keeps the old ones, and says when it is empty",
          "sanctl drain proxy-2 --etcd http://10.9.0.1:2379 --timeout 600");
  out->add_flag("!--no-wait", out_how->wait, "Do not wait until it is empty");
  out->add_option("--timeout", out_how->timeout_s,
                  "Wait at most so many seconds (then exit status 3)")
      ->check(CLI::Range(0.1, 1e7))
      ->check(check_number);
  out->callback(
      [&options, &chosen, how = out_how] { chosen = [&options, how] { drain(options, *how); }; });
  const auto [in, in_how] = add("undrain", "In again for new sessions", "sanctl undrain proxy-2");
  in->callback(
      [&options, &chosen, how = in_how] { chosen = [&options, how] { undrain(options, *how); }; });
}

void add_config(CLI::App& app, const Options& options, Chosen& chosen) {
  auto* config = add_command(app, "config", "The cluster's configuration, with its history",
                             "sanctl config get --etcd http://10.9.0.1:2379");
  config->require_subcommand(1);
  const auto add = [&](const char* name, const char* text, const char* example,
                       void (*run)(const Options&, const ConfigOptions&)) {
    auto* sub = add_command(*config, name, text, example);
    auto how = std::make_shared<ConfigOptions>();
    sub->callback(
        [&options, &chosen, how, run] { chosen = [&options, how, run] { run(options, *how); }; });
    return std::pair(sub, how);
  };
  const auto [get, get_how] = add("get", "Shows it, or one entry of it",
                                  "sanctl config get services/10.77.0.10:80", config_get);
  get->add_option("ENTRY", get_how->what, "services/IP:PORT, proxies/NAME or cluster/heartbeat");
  get->add_option("--version-number", get_how->version, "As it was in that version");

  const auto [set, set_how] =
      add("set", "Validates, then changes it in one transaction",
          "sanctl config set services/10.77.0.10:80 '{\"balance\": \"least-connections\"}'",
          config_set);
  set->add_option("WHAT", set_how->what,
                  "A file (- is standard input) with all of it, or services/IP:PORT, proxies/NAME, "
                  "cluster/heartbeat")
      ->required();
  auto* value = set->add_option("VALUE", set_how->value, "JSON, of one entry");
  set->add_flag("--delete", set_how->remove, "Delete the entry")->excludes(value);

  const auto [diff, diff_how] =
      add("diff", "What a file would change; or between versions; or by other hands",
          "sanctl config diff new.json", config_diff);
  auto* file = diff->add_option("FILE", diff_how->what, "A whole configuration");
  auto* from = diff->add_option("--from", diff_how->version, "A version, instead of a file");
  from->excludes(file);
  diff->add_option("--to", diff_how->other, "Another version (default: as it is now)")->needs(from);

  const auto [rollback, rollback_how] = add("rollback", "Back to a version that is kept",
                                            "sanctl config rollback 12", config_rollback);
  rollback->add_option("VERSION", rollback_how->other, "Default: the one before the last");

  for (const auto& [sub, how] : {std::pair(set, set_how), std::pair(rollback, rollback_how)}) {
    sub->add_option("--message", how->message, "For the history");
    sub->add_option("--expect", how->version, "Only if this version is the present one");
    sub->add_flag("--dry-run", how->dry_run, "Only say what would change");
  }
  add_command(*config, "history", "Versions that are kept", "sanctl config history --json")
      ->callback([&] { chosen = [&] { config_history(options); }; });
}

void check(Options& options, const std::string& password_file) {
  for (const std::string& url : options.etcd.endpoints) {
    if (const auto status = sanproxy::cluster::check_endpoint(url); !status.ok()) {
      throw Failure("--etcd " + url + ": " + status.text(), kExitUsage);
    }
  }
  if (!sanproxy::cluster::name_legal(options.cluster)) {
    throw Failure("--cluster: 1 to 64 letters, digits, '.', '_' or '-'", kExitUsage);
  }
  if (!options.prefix.starts_with('/') || options.prefix.size() > 256) {  // nodes take no other
    throw Failure("--prefix: expected /PATH, not \"" + options.prefix + "\"", kExitUsage);
  }
  if (!password_file.empty()) {
    std::ifstream in(password_file);
    if (!std::getline(in, options.etcd.password)) {
      throw Failure("--password-file " + password_file + " cannot be read", kExitUsage);
    }
  }
  if (options.admin.empty()) options.admin = kDefaultAdmin;
  if (!sanproxy::SocketAddress::parse(options.admin).ok()) {
    throw Failure("--admin: \"" + options.admin + "\" is not IP:PORT", kExitUsage);
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"sanctl: looks at and steers sanproxy: one node (--admin) or a cluster (--etcd)"};
  app.set_version_flag("--version", "sanctl " SANPROXY_VERSION);
  app.require_subcommand(0, 1);  // so that a misspelt one is named
  app.footer("Example: sanctl nodes --etcd http://10.9.0.1:2379 --cluster web");
  Options options;
  options.etcd.endpoints.clear();
  std::string password_file;
  Chosen chosen;
  add_common(app, options, password_file);
  add_show(app, options, chosen);
  add_drains(app, options, chosen);
  add_config(app, options, chosen);
  auto* completion = add_command(app, "completion", "A completion script for bash or zsh",
                                 "source <(sanctl completion bash)");
  std::string shell;
  completion->add_option("SHELL", shell, "bash or zsh")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh"}));
  completion->callback(
      [&] { chosen = [&] { std::fputs(completion_script(app, shell).c_str(), stdout); }; });
  try {
    app.parse(argc, argv);
    add_environment(app, options);
    check(options, password_file);
    if (!chosen) throw Failure("a command is missing: see sanctl --help", kExitUsage);
    chosen();
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
      throw Failure(std::string("the answer cannot be written: ") + std::strerror(errno));
    }
  } catch (const CLI::ParseError& error) {
    const int status = app.exit(error);
    return status == 0 ? 0 : kExitUsage;
  } catch (const Failure& failure) {
    std::fprintf(stderr, "sanctl: %s\n", failure.what());
    return failure.exit_status();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "sanctl: %s\n", error.what());
    return 1;
  }
  return 0;
}

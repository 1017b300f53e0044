// sanctl drain, undrain: a node out for new sessions, and in again.
#include <chrono>
#include <cstdio>
#include <thread>

#include "netnode/sanctl/admin_client.h"
#include "netnode/sanctl/commands.h"
#include "netnode/sanctl/view.h"

namespace sanproxy::sanctl {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLookPause{300};

// An application node is meant by what stands before its PID as well: so the proxies take it.
bool named(const NodeRow& row, const std::string& name, const std::string& kind) {
  if (!kind.empty() && row.kind != kind) return false;
  return row.name == name || (row.kind == "appnode" && cluster::name_before_pid(row.name) == name);
}

// Which kind of node has that name. A proxy that only files of network nodes name (an ordinary
// server behind the NAT, say) is registered nowhere: who says --kind and does not wait may name it.
std::string kind_of(const Options& options, const View& view, const DrainOptions& how) {
  std::string kind;
  for (const NodeRow& row : view.nodes) {
    if (!named(row, how.name, how.kind)) continue;
    if (!kind.empty() && kind != row.kind) {
      throw Failure("there is a " + kind + " and a " + row.kind + " named \"" + how.name +
                        "\": say which with --kind",
                    kExitUsage);
    }
    kind = row.kind;
  }
  if (!kind.empty()) return kind;
  if (options.whole_cluster() && !how.kind.empty() && !how.wait) {
    std::fprintf(
        stderr,
        "sanctl: no %s \"%s\" is registered: this is for those who know it by their files\n",
        how.kind.c_str(), how.name.c_str());
    return how.kind;
  }
  std::string names;
  for (const NodeRow& row : view.nodes) names += "\n  " + row.kind + " " + row.name;
  throw Failure("there is no node \"" + how.name + "\"; there are:" + names, kExitUsage);
}

// Tells the node itself, or the cluster.
void say(const Options& options, const View& view, const std::string& kind, const std::string& name,
         bool drained) {
  if (options.whole_cluster()) {
    ClusterStore store(options);
    const auto node_kind = cluster::node_kind_of(kind);
    if (!node_kind) throw Failure("--kind is proxy, netnode or appnode", kExitUsage);
    if (drained) return store.drain(*node_kind, name);
    if (!store.undrain(*node_kind, name)) {
      throw Failure(kind + " \"" + name + "\" is not drained by the cluster");
    }
    return;
  }
  const std::string verb = drained ? "/drain" : "/undrain";
  std::string path = kind == "appnode" ? "/nodes/" + encode_segment(name) + verb : verb;
  if (view.network_node) {
    path = kind == "netnode" ? verb : verb + "/" + encode_segment(name);
  }
  AdminClient(options.admin).post(path);
}

// How far it is: nothing is left when every node of that name is drained, or gone.
struct Progress {
  std::uint64_t connections = 0;
  bool done = false, gone = false;
};

Progress progress(const Options& options, const DrainOptions& how, const std::string& kind) {
  View view;
  try {
    view = look(options);
  } catch (const Failure&) {
    if (options.whole_cluster() || kind == "appnode") throw;
    return {0, true, true};  // the node that we asked itself has ended
  }
  Progress out{0, true, true};
  for (const NodeRow& row : view.nodes) {
    if (!named(row, how.name, kind)) continue;
    out.gone = false;
    out.connections += row.connections.value_or(0);
    if (row.state != "drained") out.done = false;
  }
  return out;
}

}  // namespace

void drain(const Options& options, const DrainOptions& how) {
  const View view = look(options);
  const std::string kind = kind_of(options, view, how);
  say(options, view, kind, how.name, true);
  if (!how.wait) {
    if (options.json) {
      std::puts(json{{"node", how.name}, {"kind", kind}, {"drained", false}}.dump().c_str());
    } else {
      std::printf("%s %s takes no new connections\n", kind.c_str(), how.name.c_str());
    }
    return;
  }
  const auto begin = Clock::now();
  std::uint64_t shown = UINT64_MAX;
  while (true) {
    const Progress now = progress(options, how, kind);
    const double waited_s = std::chrono::duration<double>(Clock::now() - begin).count();
    if (now.done) {
      if (options.json) {
        std::puts(json{{"node", how.name}, {"kind", kind}, {"drained", true}, {"gone", now.gone}}
                      .dump()
                      .c_str());
      } else {
        std::printf("%s %s is %s\n", kind.c_str(), how.name.c_str(), now.gone ? "gone" : "empty");
      }
      return;
    }
    if (!options.json && now.connections != shown) {
      std::printf("%s %s: %llu connections left\n", kind.c_str(), how.name.c_str(),
                  static_cast<unsigned long long>(now.connections));
      std::fflush(stdout);
      shown = now.connections;
    }
    if (how.timeout_s > 0 && waited_s >= how.timeout_s) {
      throw Failure(std::to_string(now.connections) + " connections are left after " +
                        std::to_string(static_cast<int>(waited_s)) +
                        " s; the node stays drained: sanctl undrain takes that back",
                    kExitTimeout);
    }
    std::this_thread::sleep_for(kLookPause);
  }
}

void undrain(const Options& options, const DrainOptions& how) {
  std::string kind = how.kind;
  const View view = look(options);
  if (kind.empty()) {
    // A node that is away may be undrained too.
    for (const std::string& drained : view.drains) {
      const std::size_t slash = drained.find('/');
      if (cluster::decode_name(drained.substr(slash + 1)) == how.name) {
        kind = drained.substr(0, slash);
      }
    }
    if (kind.empty()) kind = kind_of(options, view, how);
  }
  say(options, view, kind, how.name, false);
  if (options.json) {
    std::puts(json{{"node", how.name}, {"kind", kind}, {"drained", false}}.dump().c_str());
  } else {
    std::printf("%s %s takes new connections again\n", kind.c_str(), how.name.c_str());
  }
}

}  // namespace sanproxy::sanctl

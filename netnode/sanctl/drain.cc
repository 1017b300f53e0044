// sanctl drain, undrain: a node out for new sessions, and in again.
#include <chrono>
#include <cstdio>
#include <set>
#include <thread>

#include "netnode/sanctl/admin_client.h"
#include "netnode/sanctl/commands.h"
#include "netnode/sanctl/field.h"
#include "netnode/sanctl/view.h"

namespace sanproxy::sanctl {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLookPause{300};

[[noreturn]] void several(const std::string& name, const std::string& a, const std::string& b,
                          const std::string& what) {
  throw Failure(
      "there is a " + a + " and a " + b + what + " named \"" + name + "\": say which with --kind",
      kExitUsage);
}

// Which kind of node has that name. A proxy that only files of network nodes name (an ordinary
// server behind the NAT, say) is registered nowhere: who says --kind and does not wait may name it.
std::string kind_of(const Options& options, const View& view, const DrainOptions& how) {
  std::string kind;
  const Meant meant{how.kind, how.name};
  for (const NodeRow& row : view.nodes) {
    if (!meant.is(row.kind, row.name)) continue;
    if (!kind.empty() && kind != row.kind) several(how.name, kind, row.kind, "");
    kind = row.kind;
  }
  if (!kind.empty()) return kind;
  if (options.whole_cluster() && !how.kind.empty() && !how.wait) {
    std::fprintf(
        stderr,
        "sanctl: no %s \"%s\" is registered: this is for those who know it by their files\n",
        how.kind.c_str(), cluster::printable(how.name).c_str());
    return how.kind;
  }
  std::string names;
  for (const NodeRow& row : view.nodes) {
    names += "\n  " + row.kind + " " + cluster::printable(row.name);
  }
  throw Failure("there is no node \"" + cluster::printable(how.name) + "\"; there are:" + names,
                kExitUsage);
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
  std::optional<std::uint64_t> connections;  // nothing: it has not been told
  bool done = false, gone = false;
  std::string why;  // it is not known, or not certain, at the moment
};

// `itself`: the node that is drained is the one that we ask.
Progress progress(const Options& options, const Meant& meant, bool itself) {
  View view;
  try {
    view = look(options, &meant);
  } catch (const ConnectionRefused& failure) {
    if (itself) return {0, true, true, ""};  // it has ended
    return {std::nullopt, false, false, failure.what()};
  } catch (const Failure& failure) {  // that may pass
    return {std::nullopt, false, false, failure.what()};
  }
  Progress out{0, true, true, ""};
  for (const NodeRow& row : view.nodes) {
    if (!meant.is(row.kind, row.name)) continue;
    out.gone = false;
    if (row.state != "drained") out.done = false;
    if (!row.connections) {
      out.connections.reset();
    } else if (out.connections) {
      *out.connections += *row.connections;
    }
  }
  for (const std::string& name : view.unregistered) {
    const auto silent = view.unreachable.find(name);
    if (silent != view.unreachable.end()) return {std::nullopt, false, false, silent->second};
    out.why = name + " answers, and etcd knows nothing of it: it may have lost etcd, or be ending";
  }
  return out;
}

void print_json(const json& out) {  // names may be any bytes
  std::puts(out.dump(-1, ' ', false, json::error_handler_t::replace).c_str());
}

void print_done(const Options& options, const Meant& node, bool gone) {
  if (options.json) {
    const json out = {{"node", node.name}, {"kind", node.kind}, {"drained", true}, {"gone", gone}};
    print_json(out);
  } else {
    std::printf("%s %s is %s\n", node.kind.c_str(), node.name.c_str(), gone ? "gone" : "empty");
  }
}

[[noreturn]] void not_in_time(const Progress& now, double waited_s) {
  const std::string left = now.connections
                               ? std::to_string(*now.connections) + " connections are left"
                               : "it is not known how many connections are left";
  throw Failure(left + " after " + std::to_string(static_cast<int>(waited_s)) + " s" +
                    (now.why.empty() ? "" : ": " + now.why) +
                    "; the node stays drained: sanctl undrain takes that back",
                kExitTimeout);
}

// Of those that will be asked how far it is.
void note_endpoints(const View& view, Meant& node) {
  for (const NodeRow& row : view.nodes) {
    const auto kind = cluster::node_kind_of(row.kind);
    if (row.kind == "appnode" || !kind || !view.answered.contains(row.kind + "/" + row.name))
      continue;
    const bool has_it = row.kind == "proxy" && node.at.contains(row.name);
    if (has_it || node.is(row.kind, row.name)) {
      node.endpoints[cluster::node_key(*kind, row.name)] = row.where;
    }
  }
}

void wait_until_empty(const Options& options, const Meant& node, bool itself, double timeout_s) {
  const auto begin = Clock::now();
  std::optional<std::uint64_t> shown;
  std::string said;
  while (true) {
    const Progress now = progress(options, node, itself);
    const double waited_s = std::chrono::duration<double>(Clock::now() - begin).count();
    if (now.done) return print_done(options, node, now.gone);
    if (!options.json && now.connections && now.connections != shown) {
      std::printf("%s %s: %llu connections left\n", node.kind.c_str(), node.name.c_str(),
                  static_cast<unsigned long long>(*now.connections));
      std::fflush(stdout);
      shown = now.connections;
    }
    if (timeout_s > 0 && waited_s >= timeout_s) not_in_time(now, waited_s);
    if (now.why != said) {
      said = now.why;
      if (!said.empty()) std::fprintf(stderr, "sanctl: it is asked again: %s\n", said.c_str());
    }
    std::this_thread::sleep_for(kLookPause);
  }
}

// The kind of a node of that name that is drained, also one that is away. "": none is.
std::string drained_kind(const Options& options, const View& view, const std::string& name) {
  std::set<std::string> kinds;
  for (const std::string& drained : view.drains) {
    const std::size_t slash = drained.find('/');
    if (cluster::decode_name(drained.substr(slash + 1)) == name) {
      kinds.insert(drained.substr(0, slash));
    }
  }
  if (!options.whole_cluster()) {
    for (const auto& [node, status] : view.status) {
      for (const json& drained : list_in(status, "drained_nodes")) {
        if (drained == name) kinds.insert("appnode");
      }
    }
    for (const NodeRow& row : view.nodes) {
      const bool is_drained = row.state == "draining" || row.state == "drained";
      if (is_drained && Meant{"", name}.is(row.kind, row.name)) kinds.insert(row.kind);
    }
  }
  if (kinds.size() > 1) several(name, *kinds.begin(), *kinds.rbegin(), ", both drained,");
  return kinds.empty() ? "" : *kinds.begin();
}

}  // namespace

void drain(const Options& options, const DrainOptions& how) {
  const View view = look(options);
  const std::string kind = kind_of(options, view, how);
  say(options, view, kind, how.name, true);
  if (how.wait) {
    const bool itself =
        !options.whole_cluster() && kind == (view.network_node ? "netnode" : "proxy");
    Meant node{kind, how.name};
    for (const NodeRow& row : view.nodes) {
      if (kind == "appnode" && node.is(row.kind, row.name)) node.at.insert(row.at);
    }
    if (options.whole_cluster()) note_endpoints(view, node);
    return wait_until_empty(options, node, itself, how.timeout_s);
  }
  if (options.json) {
    print_json({{"node", how.name}, {"kind", kind}, {"drained", false}});
  } else {
    std::printf("%s %s takes no new connections\n", kind.c_str(), how.name.c_str());
  }
}

void undrain(const Options& options, const DrainOptions& how) {
  const View view = look(options);
  std::string kind = how.kind;
  if (kind.empty()) kind = drained_kind(options, view, how.name);
  if (kind.empty()) kind = kind_of(options, view, how);
  say(options, view, kind, how.name, false);
  if (options.json) {
    print_json({{"node", how.name}, {"kind", kind}, {"drained", false}});
  } else {
    std::printf("%s %s takes new connections again\n", kind.c_str(), how.name.c_str());
  }
}

}  // namespace sanproxy::sanctl

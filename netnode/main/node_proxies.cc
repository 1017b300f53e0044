// Node: how its proxies are, by their channels and probes.
#include <algorithm>

#include "lwproto/daemon/log.h"
#include "netnode/main/channels.h"
#include "netnode/main/node.h"

namespace sanproxy::netnode {

void Node::set_probes() {
  std::vector<Prober::Target> targets;
  const auto proxies = path_.forwarder().proxies();
  for (std::size_t i = 0; i < proxies.size(); ++i) {
    const steer::ProxyConfig& config = proxies[i].config;
    if (!proxies[i].in_use || config.probe.kind == steer::ProbeKind::kNone) continue;
    Prober::Target target{static_cast<std::uint16_t>(i), config.probe};
    if (target.settings.address.ip.family == Family::kNone) {
      target.settings.address = config.targets.front();
    }
    targets.push_back(std::move(target));
  }
  prober_.set_targets(std::move(targets));
}

// Whether anything is known of a proxy, were it that it cannot be reached.
bool Node::heard(std::uint16_t place, const Watch& watch) const {
  if (const packet_io::ChannelLink* link = channels_->link(place)) {
    const packet_io::ChannelLinkCounters& past = link->counters();
    return link->takes_packets() || past.connect_failures + past.disconnects != 0;
  }
  const steer::ProxyConfig& config = path_.forwarder().proxies()[place].config;
  return config.mode == steer::Mode::kChannel || config.probe.kind == steer::ProbeKind::kNone ||
         watch.health.state() != flow::Health::State::kUnknown;
}

void Node::update_states() {
  if (!start_hold_.over()) {
    const auto unheard = std::count_if(watches_.begin(), watches_.end(), [this](const auto& one) {
      return !heard(one.first, one.second);
    });
    (void)start_hold_.holds(watches_.size(), static_cast<std::size_t>(unheard), clock_.now_ns());
  }
  for (const auto& [place, watch] : watches_) update_state(place);
}

// From all that is known of a proxy: does it live, and does it take new sessions.
void Node::update_state(std::uint16_t place) {
  if (!start_hold_.over()) return;
  steer::Forwarder& forwarder = path_.forwarder();
  const steer::Forwarder::Proxy& proxy = forwarder.proxies()[place];
  const Watch& watch = watches_[place];
  bool alive = true;
  bool draining = watch.drain_asked || proxy.config.draining;
  if (const packet_io::ChannelLink* link = channels_->link(place)) {
    alive = link->takes_packets();
    if (alive) {
      forwarder.set_tag(place, link->proxy().proxy_id);
      forwarder.set_told_weight(place, link->proxy().weight);
    }
    draining = draining || link->state() != packet_io::LinkState::kUp || link->proxy().draining;
  } else if (proxy.config.mode == steer::Mode::kChannel) {
    alive = false;
  } else if (proxy.config.probe.kind != steer::ProbeKind::kNone) {
    alive = watch.health.up();
    draining = draining || watch.tells_draining;
  }
  const steer::ProxyState state = !alive     ? steer::ProxyState::kDown
                                  : draining ? steer::ProxyState::kDraining
                                             : steer::ProxyState::kUp;
  if (state == proxy.state) return;
  const std::string why = alive || watch.why.empty() ? "" : ": its probe failed: " + watch.why;
  spdlog::info("proxy \"{}\" is {} (was {}){}; {} sessions known here", proxy.config.name,
               steer::proxy_state_name(state), steer::proxy_state_name(proxy.state), why,
               forwarder.sessions_of(place));
  forwarder.set_state(place, state);
}

void Node::on_answers() {
  for (const Prober::Answer& answer : prober_.take()) {
    const auto watch = watches_.find(answer.proxy);
    if (watch == watches_.end()) continue;
    // Who is draining lives: established sessions stay. No answer takes nothing back of that.
    const bool good = answer.result != Prober::Result::kBad;
    const bool before = watch->second.tells_draining;
    watch->second.why = answer.why;
    if (good) watch->second.tells_draining = answer.result == Prober::Result::kDraining;
    if (watch->second.health.on_result(good) || watch->second.tells_draining != before) {
      update_state(answer.proxy);
    }
  }
  if (!start_hold_.over()) update_states();
}

std::vector<Node::ProxyView> Node::proxies() const {
  std::vector<ProxyView> out;
  const auto all = path_.forwarder().proxies();
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!all[i].in_use) continue;
    ProxyView view;
    view.proxy = &all[i];
    view.place = static_cast<std::uint16_t>(i);
    view.sessions = path_.forwarder().sessions_of(view.place);
    const auto watch = watches_.find(view.place);
    view.drain_asked = watch != watches_.end() && watch->second.drain_asked;
    if (const packet_io::ChannelLink* link = channels_->link(view.place)) {
      view.link = link;
      view.health = packet_io::link_state_name(link->state());
      view.detail = link->last_error().ok() ? "" : link->last_error().to_string();
    } else if (all[i].config.probe.kind == steer::ProbeKind::kNone) {
      view.health = "not probed";
    } else if (watch != watches_.end()) {
      const auto state = watch->second.health.state();
      view.health = state == flow::Health::State::kUp     ? "up"
                    : state == flow::Health::State::kDown ? "down"
                                                          : "unknown";
      view.detail = watch->second.why;
    }
    out.push_back(std::move(view));
  }
  return out;
}

void Node::look_at_proxies() {
  const auto proxies = path_.forwarder().proxies();
  const bool served =
      path_.forwarder().services().empty() ||
      std::any_of(proxies.begin(), proxies.end(), [](const steer::Forwarder::Proxy& proxy) {
        return proxy.in_use && proxy.state != steer::ProxyState::kDown;
      });
  const std::uint64_t after_ns = std::uint64_t{config_.no_proxy_ms} * 1'000'000;
  if (!of_use_.look(served, clock_.now_ns(), after_ns)) return;
  if (of_use_.is()) {
    spdlog::info("a proxy is there again: /healthz answers 200");
  } else {
    spdlog::warn("no proxy is up or drains for {} ms: /healthz answers 503", config_.no_proxy_ms);
  }
}

}  // namespace sanproxy::netnode

#include "proxynode/main/supervisor.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>

#include "lwproto/daemon/log.h"
#include "netnode/packet_io/device_gone.h"

namespace sanproxy::proxy {
namespace {

constexpr std::uint64_t kMs = 1'000'000;
// A worker that dies is back at once the first time, then after pauses that double.
constexpr std::uint64_t kRestartFirstNs = 50 * kMs;
constexpr std::uint64_t kRestartMaxNs = 5'000 * kMs;
constexpr std::uint64_t kSettledNs = 10'000 * kMs;   // alive for so long: the next pause is short
constexpr std::uint64_t kStartMaxNs = 20'000 * kMs;  // and worker_timeout_ms: to come up
constexpr std::uint64_t kBeatNs = 1'000 * kMs;
constexpr std::uint64_t kAnswerMaxNs = 1'500 * kMs;  // below AdminServer's own limit
constexpr int kSleepMsMax = 1000;

[[noreturn]] void fail(const std::string& what, const Status& status) {
  throw std::runtime_error(what + ": " + status.to_string());
}

// Not valid: no memory or no descriptor for it; errno says.
UniqueFd memory_with(const std::string& text) {
  UniqueFd fd(::memfd_create("sanproxy", MFD_CLOEXEC));
  if (fd.valid() &&
      ::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    fd = UniqueFd();
  }
  return fd;
}

UniqueFd memory_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  UniqueFd fd = file ? memory_with(text) : UniqueFd();
  if (!fd.valid()) throw std::runtime_error(path + ": cannot be read again");
  return fd;
}

std::string end_text(int status) {
  if (WIFSIGNALED(status)) return "signal " + std::to_string(WTERMSIG(status));
  return "exit status " + std::to_string(WEXITSTATUS(status));
}

}  // namespace

struct Supervisor::Child {
  std::uint32_t index = 0;
  pid_t pid = 0;  // 0: not running
  bool ready = false;
  bool killed = false;    // by us: it is not waited for
  bool draining = false;  // as its last sign of life said
  std::uint64_t restarts = 0;
  std::unique_ptr<ControlSocket> control;
  std::string metrics;  // its last page of them
  std::uint64_t started_ns = 0;
  std::uint64_t start_at_ns = 0;  // while it is not running
  std::uint64_t pause_ns = kRestartFirstNs;
  // The last heartbeat that was asked for and not answered; 0 if none.
  std::uint32_t beat = 0;
  std::uint64_t beat_ns = 0;
};

Supervisor::Supervisor(const ProxyConfig& config, const std::string& config_path,
                       std::uint32_t workers)
    : config_(config), config_fd_(memory_of(config_path)) {
  std::random_device random;
  seed_ = (std::uint64_t{random()} << 32) | random();
  for (std::uint32_t i = 0; i < workers; ++i) {
    children_.push_back(std::make_unique<Child>());
    children_.back()->index = i;
    auto ends = Handover::make_ends();
    if (!ends.ok()) fail("supervisor", ends.status());
    handovers_.push_back(std::move(ends).value());
  }
  open_interfaces();
  sigset_t set;
  sigemptyset(&set);
  for (const int one : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) sigaddset(&set, one);
  // main() has blocked them, before there were threads.
  epoll_ = UniqueFd(epoll_create1(EPOLL_CLOEXEC));
  signals_ = UniqueFd(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
  if (!epoll_.valid() || !signals_.valid()) {
    fail("supervisor", Status::error(Code::kSystem, "epoll or signalfd", errno));
  }
}

Supervisor::~Supervisor() = default;

void Supervisor::open_interfaces() {
  const packet_io::QueueSteering steering{static_cast<std::uint32_t>(children_.size()), seed_};
  for (const auto& options : config_.interfaces) {
    auto queues = packet_io::open_queues(options, steering);
    if (!queues.ok()) {
      throw std::runtime_error("interface " + options.name + " (" + options.driver +
                               "): " + queues.status().to_string());
    }
    queues_.push_back(std::move(queues).value());
    spdlog::info("interface {} ({}) is up with {} queues", options.name, options.driver,
                 children_.size());
  }
}

void Supervisor::start(Child& child) {
  auto ends = ControlSocket::make_pair();
  if (!ends.ok()) return start_later(child, ends.status());
  std::string drains;
  for (const std::string& path : drains_) drains += path + '\0';
  const UniqueFd drains_fd = drains.empty() ? UniqueFd() : memory_with(drains);
  if (!drains.empty() && !drains_fd.valid()) {
    return start_later(child, Status::error(Code::kSystem, "keep what is drained", errno));
  }
  WorkerPlace place;
  place.again = child.restarts != 0;
  place.drains_fd = drains_fd.get();
  place.index = child.index;
  place.workers = static_cast<std::uint32_t>(children_.size());
  place.control_fd = ends->second.get();
  place.steering_seed = seed_;
  place.handover_in = handovers_[child.index].in.get();
  for (const auto& each : handovers_) place.handover_out.push_back(each.out.get());
  for (const auto& queues : queues_) place.queue_fds.push_back(queues[child.index].get());

  // Onto itself: that clears close-on-exec in the child, and in the child alone.
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, config_fd_.get(), config_fd_.get());
  posix_spawn_file_actions_adddup2(&actions, place.control_fd, place.control_fd);
  posix_spawn_file_actions_adddup2(&actions, place.handover_in, place.handover_in);
  if (place.drains_fd >= 0) {
    posix_spawn_file_actions_adddup2(&actions, place.drains_fd, place.drains_fd);
  }
  for (const auto* list : {&place.handover_out, &place.queue_fds}) {
    for (const int fd : *list) posix_spawn_file_actions_adddup2(&actions, fd, fd);
  }
  const std::string config = "/proc/self/fd/" + std::to_string(config_fd_.get());
  const std::string where = place.to_text();
  std::array<std::string, 5> words = {"proxynode", "--config", config, "--worker-place", where};
  std::array<char*, 6> argv{};
  std::transform(words.begin(), words.end(), argv.begin(), [](auto& word) { return word.data(); });
  // In a group of its own: a signal to ours (Ctrl-C at a terminal) reaches it once, through us.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  posix_spawnattr_setpgroup(&attributes, 0);
  const int error =
      posix_spawn(&child.pid, "/proc/self/exe", &actions, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    return start_later(child, Status::error(Code::kSystem, "posix_spawn", error));
  }
  child.control = std::make_unique<ControlSocket>(std::move(ends->first));
  child.ready = child.draining = child.killed = false;
  child.metrics.clear();
  child.started_ns = clock_.now_ns();
  child.beat = 0;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = child.control->fd();
  (void)epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, event.data.fd, &event);
}

// The others go on meanwhile.
void Supervisor::start_later(Child& child, const Status& why) {
  child.pid = 0;
  child.start_at_ns = clock_.now_ns() + child.pause_ns;
  child.pause_ns = std::min(child.pause_ns * 2, kRestartMaxNs);
  spdlog::error("worker {} cannot be started: {}", child.index, why.to_string());
}

int Supervisor::run() {
  for (const int fd : {signals_.get()}) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    (void)epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
  }
  if (!config_.admin_listen.empty()) {
    const auto address = SocketAddress::parse(config_.admin_listen);
    auto server = daemon::AdminServer::start(*address, config_.admin_changes_from);
    if (!server.ok()) fail("admin endpoint " + config_.admin_listen, server.status());
    admin_ = std::move(server).value();
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = admin_->fd();
    (void)epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, event.data.fd, &event);
    spdlog::info("admin endpoint at http://{}/", config_.admin_listen);
  }
  for (auto& child : children_) start(*child);
  while (!(stopping_ && all_gone())) {
    take_events();
    const std::uint64_t now_ns = clock_.now_ns();
    for (auto& child : children_) look_after(*child, now_ns);
    look_at_devices(now_ns);
    manager_.beat(now_ns);
  }
  return exit_status_;
}

bool Supervisor::all_gone() const {
  return std::all_of(children_.begin(), children_.end(),
                     [](const auto& child) { return child->pid == 0; });
}

int Supervisor::sleep_ms(std::uint64_t now_ns) const {
  std::uint64_t next_ns = now_ns + kSleepMsMax * kMs;
  for (const auto& child : children_) {
    if (child->pid == 0 && !stopping_) next_ns = std::min(next_ns, child->start_at_ns);
  }
  return next_ns <= now_ns ? 0 : static_cast<int>((next_ns - now_ns + kMs - 1) / kMs);
}

void Supervisor::take_events() {
  std::array<epoll_event, 16> events;
  const int count =
      epoll_wait(epoll_.get(), events.data(), events.size(), sleep_ms(clock_.now_ns()));
  for (int i = 0; i < count; ++i) {
    const int fd = events[static_cast<std::size_t>(i)].data.fd;
    if (fd == signals_.get()) {
      on_signal();
    } else if (admin_ && fd == admin_->fd()) {
      admin_->serve([this](const admin::PageRequest& request) { return page(request); });
    }
    for (auto& child : children_) {
      if (child->control && child->control->fd() == fd) on_news(*child, child->control->receive());
    }
  }
}

void Supervisor::on_signal() {
  signalfd_siginfo info{};
  while (::read(signals_.get(), &info, sizeof(info)) == sizeof(info)) {
    if (info.ssi_signo == SIGCHLD) continue;  // reaped below, however many there were
    if (info.ssi_signo == SIGHUP) {
      spdlog::warn("signal {}: {}", info.ssi_signo, kNothingIsReadAgain);
      continue;
    }
    spdlog::info("signal {}: handed on to the workers", info.ssi_signo);
    stop_all(static_cast<int>(info.ssi_signo));
  }
  reap();
}

void Supervisor::stop_all(int signal) {
  stopping_ = true;
  manager_.stopping();
  for (auto& child : children_) {
    if (child->pid != 0) ::kill(child->pid, signal);
  }
}

void Supervisor::reap() {
  for (auto& child : children_) {
    int status = 0;
    if (child->pid == 0 || ::waitpid(child->pid, &status, WNOHANG) != child->pid) continue;
    const pid_t pid = std::exchange(child->pid, 0);
    child->control.reset();
    child->ready = false;
    if (stopping_) {
      spdlog::info("worker {} (pid {}) has stopped", child->index, pid);
      if (WIFEXITED(status)) exit_status_ = std::max(exit_status_, WEXITSTATUS(status));
      continue;
    }
    if (!all_were_ready_) {
      spdlog::error("worker {} could not start ({})", child->index, end_text(status));
      exit_status_ = WIFEXITED(status) && WEXITSTATUS(status) != 0 ? WEXITSTATUS(status) : 1;
      stop_all(SIGTERM);
      continue;
    }
    const std::uint64_t now_ns = clock_.now_ns();
    if (now_ns - child->started_ns > kSettledNs) child->pause_ns = kRestartFirstNs;
    child->start_at_ns = now_ns + child->pause_ns;
    spdlog::error("worker {} (pid {}) is dead ({}); the others go on, it starts again in {} ms",
                  child->index, pid, end_text(status), child->pause_ns / kMs);
    child->pause_ns = std::min(child->pause_ns * 2, kRestartMaxNs);
  }
}

void Supervisor::on_news(Child& child, const ControlNews& news) {
  switch (news.kind) {
    case ControlNews::Kind::kReady:
      child.ready = true;
      spdlog::info("worker {} (pid {}) is ready", child.index, child.pid);
      if (!all_were_ready_ && std::all_of(children_.begin(), children_.end(),
                                          [](const auto& one) { return one->ready; })) {
        all_were_ready_ = true;
        manager_.ready();
        spdlog::info("proxy node \"{}\" is ready with {} workers", config_.name, children_.size());
      }
      break;
    case ControlNews::Kind::kAnswer:
      if (news.question == child.beat) {
        child.beat = 0;
        child.draining = news.page.http_status == 503;
      }
      break;
    case ControlNews::Kind::kEnd:
      child.control.reset();  // it is dying: SIGCHLD follows
      break;
    case ControlNews::Kind::kNothing:
      break;
  }
}

// Starts it when it is time; asks for a sign of life, and ends a worker that gives none.
void Supervisor::look_after(Child& child, std::uint64_t now_ns) {
  if (child.pid == 0) {
    if (stopping_ || now_ns < child.start_at_ns) return;
    ++child.restarts;
    start(child);
    return;
  }
  if (!child.ready && !child.killed && config_.worker_timeout_ms != 0 &&
      now_ns - child.started_ns >= kStartMaxNs + std::uint64_t{config_.worker_timeout_ms} * kMs) {
    spdlog::error("worker {} (pid {}) has not come up for {} ms: it is ended", child.index,
                  child.pid, (now_ns - child.started_ns) / kMs);
    child.killed = true;
    ::kill(child.pid, SIGKILL);
    return;
  }
  if (!child.ready || !child.control) return;
  if (child.beat != 0) {
    if (config_.worker_timeout_ms == 0) return;
    if (now_ns - child.beat_ns < std::uint64_t{config_.worker_timeout_ms} * kMs) return;
    spdlog::error("worker {} (pid {}) has not answered for {} ms: it is ended", child.index,
                  child.pid, config_.worker_timeout_ms);
    child.beat = 0;
    child.ready = false;
    child.killed = true;
    ::kill(child.pid, SIGKILL);
    return;
  }
  if (now_ns - child.beat_ns < kBeatNs) return;
  child.beat_ns = now_ns;
  const std::uint32_t number = next_question_++;
  if (child.control->ask(number, {"/healthz", 0})) child.beat = number;
}

// Workers would find it out as well, and end; and be started again, for nothing.
void Supervisor::look_at_devices(std::uint64_t now_ns) {
  if (stopping_ || now_ns < devices_due_ns_) return;
  devices_due_ns_ = now_ns + packet_io::kDeviceLookNs;
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    if (!packet_io::queue_gone(config_.interfaces[i], queues_[i].front().get())) continue;
    spdlog::error("interface {} has been removed", config_.interfaces[i].name);
    exit_status_ = 1;
    return stop_all(SIGTERM);
  }
}

std::vector<admin::WorkerPage> Supervisor::ask_all(const admin::PageRequest& request) {
  std::vector<admin::WorkerPage> pages(children_.size());
  const std::uint32_t number = next_question_++;
  std::size_t open = 0;
  for (std::size_t i = 0; i < children_.size(); ++i) {
    Child& child = *children_[i];
    pages[i].page.http_status = 0;
    if (child.ready && child.control && child.control->ask(number, request)) ++open;
  }
  const std::uint64_t deadline_ns = clock_.now_ns() + kAnswerMaxNs;
  while (open > 0) {
    std::vector<pollfd> waits;
    std::vector<std::size_t> whose;
    for (std::size_t i = 0; i < children_.size(); ++i) {
      if (!children_[i]->control || pages[i].page.http_status != 0) continue;
      waits.push_back({children_[i]->control->fd(), POLLIN, 0});
      whose.push_back(i);
    }
    const std::uint64_t now_ns = clock_.now_ns();
    if (waits.empty() || now_ns >= deadline_ns) break;
    const auto left_ms = static_cast<int>((deadline_ns - now_ns) / kMs) + 1;
    if (::poll(waits.data(), waits.size(), left_ms) <= 0) break;
    for (std::size_t w = 0; w < waits.size(); ++w) {
      if (waits[w].revents == 0) continue;
      Child& child = *children_[whose[w]];
      ControlNews news = child.control->receive();
      const bool wanted = news.kind == ControlNews::Kind::kAnswer && news.question == number;
      if (wanted) {
        pages[whose[w]].page = std::move(news.page);
        --open;
        continue;
      }
      if (news.kind == ControlNews::Kind::kEnd && child.ready) --open;
      on_news(child, news);
    }
  }
  for (std::size_t i = 0; i < children_.size(); ++i) {
    const Child& child = *children_[i];
    pages[i].state = {child.index, child.pid, child.ready, child.restarts};
  }
  return pages;
}

// A sum without a worker that lives, and is only too busy to answer, would look like a restart to
// whoever makes rates of it: its last page stands for it.
admin::Page Supervisor::metrics(const admin::PageRequest& request) {
  std::vector<admin::WorkerPage> pages = ask_all(request);
  for (std::size_t i = 0; i < pages.size(); ++i) {
    Child& child = *children_[i];
    admin::Page& page = pages[i].page;
    if (page.http_status == 200 && !page.body.empty()) {  // empty: it had no descriptor for it
      child.metrics = page.body;
    } else if (child.ready && !child.metrics.empty()) {
      page = {200, "text/plain", child.metrics};
    }
  }
  return admin::sum_metrics(pages);
}

// What is meant, not what was answered: a worker may do it later than we wait for its answer, and
// forgets its own drain also where the cluster's stays. None does what one calls nonsense; and that
// one has done it bounds how many there are, as it does there.
void Supervisor::remember_drains(const std::string& path,
                                 const std::vector<admin::WorkerPage>& answers) {
  const std::string undo = "/undrain";
  if (path.ends_with(undo)) {
    drains_.erase(path.substr(0, path.size() - undo.size()) + "/drain");
    return;
  }
  const auto any = [&](int from, int to) {
    return std::any_of(answers.begin(), answers.end(), [&](const auto& worker) {
      return worker.page.http_status >= from && worker.page.http_status < to;
    });
  };
  if (any(200, 300) && !any(400, 500)) drains_.insert(path);
}

// A change is for every worker: done when all have done it, else the first refusal.
admin::Page Supervisor::change(const admin::PageRequest& request) {
  const std::vector<admin::WorkerPage> answers = ask_all(request);
  remember_drains(request.path, answers);
  for (std::size_t i = 0; i < answers.size(); ++i) {  // its next sign of life may be a second away
    if (answers[i].page.http_status != 200) continue;
    if (request.path == "/drain") children_[i]->draining = true;
    if (request.path == "/undrain") children_[i]->draining = false;
  }
  for (const admin::WorkerPage& worker : answers) {
    if (worker.page.http_status == 200) continue;
    if (worker.page.http_status != 0) return worker.page;
    return {503, "text/plain",
            "worker " + std::to_string(worker.state.index) + " has not answered: ask again\n"};
  }
  return answers.front().page;
}

admin::Page Supervisor::page(const admin::PageRequest& request) {
  if (request.method == "POST") return change(request);
  if (request.path == "/metrics") return metrics(request);
  if (request.path == "/status") return admin::sum_status(config_.name, ask_all(request));
  if (request.path == "/connections") {
    return admin::sum_connections(ask_all(request), request.limit);
  }
  if (request.path == "/healthz") {
    std::vector<admin::WorkerPage> states(children_.size());
    for (std::size_t i = 0; i < children_.size(); ++i) {
      states[i].state = {children_[i]->index, children_[i]->pid, children_[i]->ready,
                         children_[i]->restarts};
    }
    const bool draining = std::any_of(children_.begin(), children_.end(),
                                      [](const auto& child) { return child->draining; });
    return admin::sum_health(states, stopping_ || draining);
  }
  if (request.path == "/") {
    return {200, "text/plain",
            "sanproxy: /metrics /status /healthz\n"
            "/connections?limit=N&service=IP:PORT&state=STATE&client=IP&node=NAME\n"
            "POST /drain /undrain /nodes/NAME/drain /nodes/NAME/undrain\n"};
  }
  return {404, "text/plain", "not here; see /\n"};
}

}  // namespace sanproxy::proxy

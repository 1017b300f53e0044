// queue_pair_breaker: preloaded into a program (LD_PRELOAD), puts all its RDMA queue pairs into the
// error state at each SIGUSR1, as a device does that has lost them.
//
// Role: a fault from outside for tests/e2e/test_fabrics.py; the program itself knows nothing of it.
// Thread: any; the signal may come to another one than that which owns the queue pairs.
// Invariants:
//   1. The handler makes one system call a queue pair and touches no memory but the table.
#include <dlfcn.h>
#include <infiniband/verbs.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr std::size_t kQueuePairsMax = 256;

std::array<std::atomic<ibv_qp*>, kQueuePairsMax>& table() {
  static std::array<std::atomic<ibv_qp*>, kQueuePairsMax> entries{};
  return entries;
}

void on_signal(int /*number*/) {
  for (auto& entry : table()) {
    ibv_qp* const queue_pair = entry.load();
    if (queue_pair == nullptr) continue;
    ibv_qp_attr attributes{};
    attributes.qp_state = IBV_QPS_ERR;
    (void)::ibv_modify_qp(queue_pair, &attributes, IBV_QP_STATE);
  }
}

void replace(ibv_qp* from, ibv_qp* to) {
  for (auto& entry : table()) {
    ibv_qp* expected = from;
    if (entry.compare_exchange_strong(expected, to)) return;
  }
  if (from != nullptr) return;  // made before its maker was looked for
  std::fputs("queue_pair_breaker: too many queue pairs\n", stderr);
  std::abort();
}

template <typename Function>
Function next_of(const char* name) {
  auto* const found = reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
  if (found == nullptr) {
    std::fprintf(stderr, "queue_pair_breaker: no %s behind us\n", name);
    std::abort();
  }
  return found;
}

[[gnu::constructor]] void start() {
  (void)table();
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGUSR1, &action, nullptr);
}

}  // namespace

extern "C" [[gnu::visibility("default")]] ibv_qp* ibv_create_qp(ibv_pd* domain,
                                                                ibv_qp_init_attr* attributes) {
  static const auto make = next_of<ibv_qp* (*)(ibv_pd*, ibv_qp_init_attr*)>("ibv_create_qp");
  ibv_qp* const made = make(domain, attributes);
  if (made != nullptr) replace(nullptr, made);
  return made;
}

extern "C" [[gnu::visibility("default")]] int ibv_destroy_qp(ibv_qp* queue_pair) {
  static const auto destroy = next_of<int (*)(ibv_qp*)>("ibv_destroy_qp");
  replace(queue_pair, nullptr);
  return destroy(queue_pair);
}

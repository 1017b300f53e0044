// What a buffer costs on its way through the pool.
#include <benchmark/benchmark.h>

#include <vector>

#include "lwproto/buffer/slot_pool.h"

namespace sanproxy::buffer {
namespace {

// The argument: slots taken at a time, as a burst of packets does.
void pool_acquire_and_release(benchmark::State& state) {
  const auto burst = static_cast<std::size_t>(state.range(0));
  std::vector<std::byte> memory(4096 * 64);
  SlotPool pool(memory, 64);
  std::vector<SlotIndex> slots(burst);
  for (auto _ : state) {
    for (SlotIndex& slot : slots) slot = pool.acquire();
    for (const SlotIndex slot : slots) pool.mark_received(slot);
    for (const SlotIndex slot : slots) pool.release(slot);
    benchmark::DoNotOptimize(slots.data());
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(pool_acquire_and_release)->Arg(1)->Arg(64)->Arg(2048);

}  // namespace
}  // namespace sanproxy::buffer

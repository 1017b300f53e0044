// What the two ledgers add to each transfer and each DATA.
#include <benchmark/benchmark.h>

#include "lwproto/flow/credit_ledger.h"
#include "lwproto/flow/stream_window.h"

namespace sanproxy::flow {
namespace {

// One transfer there and one back, with everything that both ledgers are asked on the way.
void ledger_round_trip(benchmark::State& state) {
  CreditLedger ours(512, 32, 512);
  CreditLedger theirs(512, 32, 512);
  for (auto _ : state) {
    for (CreditLedger* from : {&ours, &theirs}) {
      CreditLedger& to = from == &ours ? theirs : ours;
      benchmark::DoNotOptimize(from->may_send_data());
      from->on_sent();
      const std::uint32_t granted = from->granted_total();
      from->on_grant_sent();
      benchmark::DoNotOptimize(to.on_received());
      benchmark::DoNotOptimize(to.on_granted(granted));
      to.on_posted(1);
      benchmark::DoNotOptimize(to.grant_due());
    }
  }
  state.SetItemsProcessed(state.iterations() * 2);
}
BENCHMARK(ledger_round_trip);

// One DATA through both windows of its direction, with the CREDIT when it is due.
void window_data_and_credit(benchmark::State& state) {
  constexpr std::uint32_t kBytes = 64;
  SendWindow sender(1 << 20);
  ReceiveWindow receiver(1 << 20);
  for (auto _ : state) {
    benchmark::DoNotOptimize(sender.available());
    const std::uint64_t offset = sender.sent();
    sender.on_sent(kBytes);
    benchmark::DoNotOptimize(receiver.on_data(offset, kBytes));
    receiver.on_freed(kBytes);
    if (receiver.credit_due()) {
      const std::uint64_t freed = receiver.announce();
      benchmark::DoNotOptimize(sender.on_credit(freed, freed));
    }
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(window_data_and_credit);

}  // namespace
}  // namespace sanproxy::flow

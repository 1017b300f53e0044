// What one message costs to write and to read again: all of lwproto/wire, nothing else.
#include <benchmark/benchmark.h>

#include <array>
#include <cstddef>

#include "lwproto/wire/codec.h"

namespace sanproxy::wire {
namespace {

// Messages of one transfer; the time is reported a message (items).
constexpr int kBatch = 16;

class Transfer {
 public:
  template <typename Append>
  void write(Append append) {
    TransferWriter writer(space_);
    for (int i = 0; i < kBatch; ++i) append(writer, static_cast<std::uint64_t>(i));
    bytes_ = writer.finish(512);
    benchmark::ClobberMemory();
  }
  std::uint64_t read() const {
    TransferReader reader({space_.data(), bytes_}, 0);
    std::uint64_t sum = reader.begin()->credits_granted;
    Message message;
    while (reader.next(message).ok()) {
      sum += message.data.connection + message.payload_bytes;
      benchmark::DoNotOptimize(message);
    }
    return sum;
  }

 private:
  alignas(64) std::array<std::byte, kTransferInlineBytesMax> space_{};
  std::size_t bytes_ = 0;
};

std::array<std::byte, kInlinePayloadBytesMax> payload{};

auto data_of(std::size_t bytes) {
  return [bytes](TransferWriter& writer, std::uint64_t i) {
    benchmark::DoNotOptimize(writer.append_data(i + 1, i * bytes, {payload.data(), bytes}));
  };
}

void append_credit(TransferWriter& writer, std::uint64_t i) {
  benchmark::DoNotOptimize(writer.append(MessageType::kCredit, 0, CloseCode::kNone,
                                         CreditBody{i + 1, i * 4096, i * 4096}));
}

void codec_data_append(benchmark::State& state) {
  Transfer transfer;
  for (auto _ : state) transfer.write(data_of(static_cast<std::size_t>(state.range(0))));
  state.SetItemsProcessed(state.iterations() * kBatch);
}
BENCHMARK(codec_data_append)->Arg(64)->Arg(400);

void codec_data_read(benchmark::State& state) {
  Transfer transfer;
  transfer.write(data_of(static_cast<std::size_t>(state.range(0))));
  for (auto _ : state) benchmark::DoNotOptimize(transfer.read());
  state.SetItemsProcessed(state.iterations() * kBatch);
}
BENCHMARK(codec_data_read)->Arg(64)->Arg(400);

void codec_data_append_and_read(benchmark::State& state) {
  Transfer transfer;
  for (auto _ : state) {
    transfer.write(data_of(64));
    benchmark::DoNotOptimize(transfer.read());
  }
  state.SetItemsProcessed(state.iterations() * kBatch);
}
BENCHMARK(codec_data_append_and_read);

// One message a transfer: what a lone request pays, header of the transfer included.
void codec_data_lone_transfer(benchmark::State& state) {
  std::array<std::byte, 256> space{};
  Message message;
  for (auto _ : state) {
    TransferWriter writer(space);
    benchmark::DoNotOptimize(writer.append_data(1, 0, {payload.data(), 64}));
    const std::size_t bytes = writer.finish(512);
    benchmark::ClobberMemory();
    TransferReader reader({space.data(), bytes}, 0);
    benchmark::DoNotOptimize(reader.begin());
    benchmark::DoNotOptimize(reader.next(message));
    benchmark::DoNotOptimize(message);
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(codec_data_lone_transfer);

void codec_credit_append(benchmark::State& state) {
  Transfer transfer;
  for (auto _ : state) transfer.write(append_credit);
  state.SetItemsProcessed(state.iterations() * kBatch);
}
BENCHMARK(codec_credit_append);

void codec_credit_read(benchmark::State& state) {
  Transfer transfer;
  transfer.write(append_credit);
  for (auto _ : state) benchmark::DoNotOptimize(transfer.read());
  state.SetItemsProcessed(state.iterations() * kBatch);
}
BENCHMARK(codec_credit_read);

}  // namespace
}  // namespace sanproxy::wire

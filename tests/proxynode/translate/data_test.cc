// Bytes both ways: order, windows, credits, half-close.
#include "tests/proxynode/translate/world.h"

namespace sanproxy::translate::testing {
namespace {

struct Kind {
  const char* name;
  Delivery delivery;
  bool lend;
  bool shm;
};

class DataFlow : public World, public ::testing::WithParamInterface<Kind> {
 protected:
  void make_with(WorldOptions options = {}) {
    options.delivery = GetParam().delivery;
    options.lend_ingress = GetParam().lend;
    options.shm = GetParam().shm;
    make(options);
  }
};

TEST_P(DataFlow, AnUploadArrivesWholeAndInOrder) {
  make_with();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  const Bytes bytes = pattern(1'000'000);
  client->send(bytes);
  client->shut();
  run();
  Bytes expected = bytes_of("hello");
  expected.insert(expected.end(), bytes.begin(), bytes.end());
  EXPECT_TRUE(node.conns[id].received == expected);
  EXPECT_EQ(node.conns[id].closes, (std::vector{CloseCode::kFin}));
}

TEST_P(DataFlow, EveryByteIsCounted) {
  make_with();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->send(pattern(50'000));
  node.send(id, pattern(60'000));
  run();
  EXPECT_EQ(counters().bytes_to_apps, 50'005u);
  EXPECT_EQ(counters().bytes_from_apps, 60'000u);
}

TEST_P(DataFlow, AnUploadOfSuperPacketsArrivesWholeAndInOrder) {
  make_with();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->segment_bytes = 61'320;
  const Bytes bytes = pattern(3'000'000);
  client->send(bytes);
  client->shut();
  run();
  ASSERT_EQ(node.conns[id].received.size(), bytes.size() + 5);
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), node.conns[id].received.begin() + 5));
}

TEST_P(DataFlow, ADownloadArrivesWholeAndInOrder) {
  make_with();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  const Bytes bytes = pattern(3'000'000);
  node.piece_bytes = 65'536;
  node.send(id, bytes);
  node.close(id);
  run();
  EXPECT_TRUE(client->received == bytes);
  EXPECT_TRUE(client->fin);
  EXPECT_EQ(counters().bytes_from_apps, bytes.size());
}

TEST_P(DataFlow, SmallPiecesBothWaysKeepTheirOrder) {
  make_with();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node, "0");
  std::string up = "0", down;
  for (int i = 0; i < 300; ++i) {
    const std::string text = std::to_string(i) + ",";
    client->send(bytes_of(text));
    node.send(id, bytes_of(text + "!"));
    up += text;
    down += text + "!";
    if (i % 7 == 0) run();
  }
  run();
  EXPECT_EQ(text_of(node.conns[id].received), up);
  EXPECT_EQ(text_of(client->received), down);
}

TEST_P(DataFlow, PiecesOfEverySizeAroundTheInlineLimit) {
  make_with();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node, "x");
  Bytes up = bytes_of("x"), down;
  for (const std::size_t size : {1, 1023, 1024, 1025, 1459, 1460, 2048, 4096}) {
    client->segment_bytes = size;
    const Bytes bytes = pattern(size, up.size());
    client->send(bytes);
    up.insert(up.end(), bytes.begin(), bytes.end());
    node.piece_bytes = static_cast<std::uint32_t>(size);
    const Bytes back = pattern(size * 3, down.size());
    node.send(id, back);
    down.insert(down.end(), back.begin(), back.end());
    run();
  }
  EXPECT_TRUE(node.conns[id].received == up);
  EXPECT_TRUE(client->received == down);
}

TEST_P(DataFlow, TheClientsWindowOpensOnlyAsTheApplicationFrees) {
  make_with();
  Node& node = add_member();
  node.free = false;
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->segment_bytes = 30'000;
  client->send(pattern(1'000'000));
  run();
  EXPECT_EQ(client->window_bytes(), 0u) << "the window is shut";
  const std::uint64_t window = client->acknowledged();
  EXPECT_NEAR(static_cast<double>(window), 256 * 1024, 8) << "scaling rounds it";
  EXPECT_EQ(node.conns[id].received.size(), window);
  // Half of it is freed, and exactly that much comes.
  node.conns[id].announced = 128 * 1024;
  node.raw_credit(id, 128 * 1024);
  run();
  EXPECT_EQ(node.conns[id].received.size(), window + 128 * 1024);
  node.free = true;
  node.free_all(id);
  run();
  EXPECT_EQ(node.conns[id].received.size(), 1'000'005u);
}

TEST_P(DataFlow, AnApplicationsWindowSmallerThanTcpsIsNotOverrun) {
  make_with();
  Node& node = add_member({.window_bytes = 10'000});
  node.free = false;
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->send(pattern(200'000));
  run();
  EXPECT_EQ(node.conns[id].received.size(), 10'000u);
  node.free = true;
  node.free_all(id);
  run();
  ASSERT_EQ(node.conns[id].received.size(), 200'005u);
  const Bytes expected = pattern(200'000);
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), node.conns[id].received.begin() + 5));
}

TEST_P(DataFlow, AWindowOfOneByteStillMovesEverything) {
  make_with();
  Node& node = add_member({.window_bytes = 1});
  Client* client = nullptr;
  const std::uint64_t id = open(client, node, "one byte at a time");
  EXPECT_EQ(text_of(node.conns[id].received), "one byte at a time");
}

TEST_P(DataFlow, AClientThatDoesNotReadStopsItsApplicationAtTheWindow) {
  make_with();
  Node& node = add_member();
  Client* slow = nullptr;
  const std::uint64_t id = open(slow, node);
  slow->acknowledge = false;
  const Bytes bytes = pattern(1'000'000);
  node.send(id, bytes);
  run();
  EXPECT_EQ(node.conns[id].sent, 256u * 1024) << "what the proxy's window lets in";
  EXPECT_EQ(node.conns[id].freed, 0u);
  // Its neighbour does not notice.
  Client* quick = nullptr;
  const std::uint64_t other = open(quick, node);
  node.send(other, bytes);
  run();
  EXPECT_TRUE(quick->received == bytes);
  slow->acknowledge = true;
  run_ms(5000);  // the stack sends again
  EXPECT_TRUE(slow->received == bytes);
}

TEST_P(DataFlow, CreditsTellWhatTheClientHasAcknowledged) {
  make_with();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  node.send(id, pattern(200'000));
  run();
  EXPECT_GE(node.conns[id].freed, 200'000u - 64 * 1024);
  EXPECT_EQ(node.conns[id].freed, node.conns[id].acked);
  EXPECT_EQ(node.cookies_out(), 0u) << "acknowledged memory is the application's again";
  EXPECT_EQ(translator_->records_used(), 0u);
}

TEST_P(DataFlow, HalfCloseByTheClientLetsTheAnswerGoOn) {
  make_with();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node, "question");
  client->shut();
  run();
  EXPECT_EQ(node.conns[id].closes, (std::vector{CloseCode::kFin}));
  const Bytes bytes = pattern(400'000);
  node.send(id, bytes);
  run();
  EXPECT_TRUE(client->received == bytes);
  EXPECT_FALSE(client->fin);
  node.close(id);
  run();
  EXPECT_TRUE(client->finished());
  EXPECT_FALSE(client->reset);
  EXPECT_EQ(translator_->bound_streams(), 0u);
  EXPECT_EQ(node.conns[id].closes.size(), 1u) << "two kFin are a terminal close together";
}

TEST_P(DataFlow, HalfCloseByTheApplicationLetsTheClientGoOn) {
  make_with();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  node.send(id, bytes_of("all I had to say"));
  node.close(id);
  run();
  EXPECT_EQ(text_of(client->received), "all I had to say");
  EXPECT_TRUE(client->fin);
  client->send(pattern(400'000));
  run();
  EXPECT_EQ(node.conns[id].received.size(), 400'005u);
  client->shut();
  run();
  EXPECT_TRUE(client->finished());
  EXPECT_EQ(node.conns[id].closes, (std::vector{CloseCode::kFin}));
  EXPECT_EQ(node.conns[id].close_offset, 400'005u);
  EXPECT_EQ(translator_->bound_streams(), 0u);
}

TEST_P(DataFlow, BothSidesMayFinishAtOnce) {
  make_with();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->send(bytes_of(" and bye"));
  client->shut();
  node.send(id, bytes_of("bye"));
  node.close(id);
  run();
  EXPECT_EQ(text_of(node.conns[id].received), "hello and bye");
  EXPECT_EQ(text_of(client->received), "bye");
  EXPECT_TRUE(client->finished());
  EXPECT_EQ(translator_->bound_streams(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Fabric, DataFlow,
                         ::testing::Values(Kind{"Isolated", Delivery::kLoans, false, false},
                                           Kind{"Lent", Delivery::kLoans, true, false},
                                           Kind{"Copied", Delivery::kReceiveBuffers, true, false},
                                           Kind{"IsolatedShm", Delivery::kLoans, false, true},
                                           Kind{"LentShm", Delivery::kLoans, true, true}),
                         [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace sanproxy::translate::testing

#include "proxynode/main/control_socket.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>

namespace sanproxy::proxy {
namespace {

struct ControlSocketTest : ::testing::Test {
  void SetUp() override {
    auto ends = ControlSocket::make_pair();
    ASSERT_TRUE(ends.ok());
    supervisor_ = std::make_unique<ControlSocket>(std::move(ends->first));
    worker_ = std::make_unique<ControlSocket>(std::move(ends->second));
  }
  ControlNews ask() {
    EXPECT_TRUE(supervisor_->ask(7, {"/healthz", 0}));
    EXPECT_TRUE(worker_->serve([](const admin::PageRequest&) {
      return admin::Page{503, "text/plain", "draining"};
    }));
    return supervisor_->receive();
  }

  std::unique_ptr<ControlSocket> supervisor_, worker_;
};

TEST_F(ControlSocketTest, AnAnswerCarriesItsPage) {
  const ControlNews news = ask();
  EXPECT_EQ(news.kind, ControlNews::Kind::kAnswer);
  EXPECT_EQ(news.question, 7u);
  EXPECT_EQ(news.page.http_status, 503);
  EXPECT_EQ(news.page.body, "draining");
}

// Else the supervisor takes it for hung, and ends it with all its connections.
TEST_F(ControlSocketTest, AWorkerWithoutAFreeDescriptorStillSaysThatItLives) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none{0, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const ControlNews news = ask();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(news.kind, ControlNews::Kind::kAnswer);
  EXPECT_EQ(news.question, 7u);
  EXPECT_EQ(news.page.http_status, 503);
  EXPECT_EQ(news.page.body, "");
}

}  // namespace
}  // namespace sanproxy::proxy

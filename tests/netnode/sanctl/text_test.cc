// What sanctl reads and writes as text: tables, queries, metrics, completion.
#include <gtest/gtest.h>

#include "netnode/sanctl/admin_client.h"
#include "netnode/sanctl/completion.h"
#include "netnode/sanctl/options.h"
#include "netnode/sanctl/table.h"

namespace sanproxy::sanctl {
namespace {

TEST(SanctlText, ColumnsLineUpAndNothingMovesTheCursor) {
  Table table({"A", "LONG HEADER", "C"});
  table.add({"longer than A", "x", ""});
  table.add({"\x1b[2J", "y", "z"});
  EXPECT_EQ(table.text(),
            "A              LONG HEADER  C\n"
            "longer than A  x            -\n"
            "?[2J           y            z\n");
}

TEST(SanctlText, AnEndpointThatIsNoneIsNamedAndMovesNoCursor) {
  try {
    (void)AdminClient("\x1b[2J:1").get_text("/status");
    FAIL() << "asked";
  } catch (const Failure& failure) {
    EXPECT_STREQ(failure.what(), R"("\x1b[2J:1" is not IP:PORT)");
  }
}

TEST(SanctlText, AQueryCarriesAnyValue) {
  EXPECT_EQ(with_query("/connections", {}), "/connections");
  EXPECT_EQ(with_query("/c", {{"client", "[fd77::1]:5"}, {"node", "a&b=c d"}}),
            "/c?client=%5Bfd77%3A%3A1%5D%3A5&node=a%26b%3Dc%20d");
  EXPECT_EQ(encode_segment("httpd:12/x"), "httpd:12%2Fx");
}

TEST(SanctlText, MetricsAreReadAndNonsenseIsLeftOut) {
  const auto metrics = parse_metrics("# HELP a b\na 1\nb{x=\"1\"} 2.5\nnonsense\nc one\n\nd 3");
  EXPECT_EQ(metrics, (std::map<std::string, double>{{"a", 1}, {"b{x=\"1\"}", 2.5}, {"d", 3}}));
}

TEST(SanctlText, WorkersAreNotCountedBesideTheirSum) {
  const auto metrics = parse_metrics(
      "a 5\na{worker=\"0\"} 2\na{worker=\"1\"} 3\nab 100\n"
      "p{direction=\"in\"} 7\np{direction=\"out\"} 9\np{worker=\"0\",direction=\"in\"} 7\n");
  EXPECT_EQ(sum_of_series(metrics, "a"), 5);
  EXPECT_EQ(sum_of_series(metrics, "p", "direction=\"in\""), 7);
  EXPECT_EQ(sum_of_series(metrics, "p"), 16);
  EXPECT_EQ(sum_of_series(metrics, "nothing"), 0);
}

TEST(SanctlText, CompletionKnowsWhatMayFollowACommandBelowACommand) {
  CLI::App app;
  app.add_option("--etcd");
  auto* config = app.add_subcommand("config");
  config->add_subcommand("set")->add_flag("--dry-run");
  auto* drain = app.add_subcommand("drain");
  std::string text;
  drain->add_option("SHELL", text)->check(CLI::IsMember({"bash", "zsh"}));
  drain->add_option("--kind", text)->check(CLI::IsMember({"proxy", "appnode"}));
  const std::string script = completion_script(app, "bash");
  for (const char* part :
       {"\"\") offered=\"config drain --help --etcd\" ;;",
        "\"config set\") offered=\"--help --dry-run --etcd\" ;;",
        "\"drain\") offered=\"--help bash zsh --kind --etcd\" ;;",
        "\"drain --kind\") offered=\"proxy appnode\" ;;", R"-("config"|"config set"|"drain"))-"}) {
    EXPECT_NE(script.find(part), std::string::npos) << part << "\n" << script;
  }
  EXPECT_NE(completion_script(app, "zsh").find("bashcompinit"), std::string::npos);
}

}  // namespace
}  // namespace sanproxy::sanctl

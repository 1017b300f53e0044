#include "appnode-lib/examples/http_parser.h"

#include <gtest/gtest.h>

#include <string>

#include "appnode-lib/examples/http_body.h"

namespace examples {
namespace {

int parse(std::string_view head, RequestHead& out) {
  HeadScanner scanner;
  if (scanner.scan(head) != HeadScanner::Result::kComplete) return -1;
  EXPECT_EQ(scanner.head_bytes(), head.size()) << head;
  return parse_head(head, out);
}

int status_of(std::string_view head) {
  RequestHead out;
  return parse(head, out);
}

TEST(HttpParser, ReadsWhatMattersOfAnOrdinaryRequest) {
  RequestHead head;
  ASSERT_EQ(parse("POST /a?b HTTP/1.1\r\nHost: x\r\nCONTENT-length:  12 \r\nA: b\r\n\r\n", head),
            0);
  EXPECT_EQ(head.method, Method::kPost);
  EXPECT_EQ(head.target, "/a?b");
  EXPECT_EQ(head.content_length, 12u);
  EXPECT_TRUE(head.keep_alive);
  EXPECT_FALSE(head.chunked);
}

TEST(HttpParser, DecidesOnKeepAliveByVersionAndConnection) {
  RequestHead head;
  ASSERT_EQ(parse("GET / HTTP/1.0\r\n\r\n", head), 0);
  EXPECT_FALSE(head.keep_alive);
  ASSERT_EQ(parse("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", head), 0);
  EXPECT_TRUE(head.keep_alive);
  ASSERT_EQ(parse("GET / HTTP/1.1\r\nHost: x\r\nConnection: foo, close\r\n\r\n", head), 0);
  EXPECT_FALSE(head.keep_alive);
}

TEST(HttpParser, RefusesWhatTwoParsersMightReadDifferently) {
  const struct {
    const char* what;
    std::string head;
    int status;
  } kCases[] = {
      {"no host", "GET / HTTP/1.1\r\n\r\n", 400},
      {"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
      {"obs-fold", "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", 400},
      {"space before colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400},
      {"bare CR in a value", "GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", 400},
      {"bare CR in the request line", "GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"bare LF", "GET / HTTP/1.1\nHost: a\r\n\r\n", -1},
      {"bare LF at the end", "GET / HTTP/1.1\r\nHost: a\r\n\n", -1},
      {"NUL in a value", std::string("GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", 29), 400},
      {"TE and CL",
       "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
       400},
      {"TE in 1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
      {"TE twice",
       "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: "
       "chunked\r\n\r\n",
       400},
      {"another TE", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501},
      {"two CL", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
       400},
      {"signed CL", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n", 400},
      {"CL list", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\n", 400},
      {"endless CL", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999999999999\r\n\r\n",
       400},
      {"empty name", "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400},
      {"no colon", "GET / HTTP/1.1\r\nHost\r\n\r\n", 400},
      {"no version", "GET /\r\n\r\n", 400},
      {"version 2", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505},
      {"lower-case version", "GET / http/1.1\r\nHost: a\r\n\r\n", 400},
      {"space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"unknown expectation", "GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", 417},
  };
  for (const auto& c : kCases) EXPECT_EQ(status_of(c.head), c.status) << c.what;
}

TEST(HttpParser, FindsTheEndOfAHeadThatTricklesIn) {
  const std::string head = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
  HeadScanner scanner;
  for (std::size_t n = 1; n < head.size(); ++n) {
    ASSERT_EQ(scanner.scan(std::string_view(head).substr(0, n)), HeadScanner::Result::kIncomplete);
  }
  EXPECT_EQ(scanner.scan(head), HeadScanner::Result::kComplete);
  EXPECT_EQ(scanner.head_bytes(), head.size());
}

TEST(HttpParser, BoundsTheHead) {
  HeadScanner scanner;
  EXPECT_EQ(scanner.scan("GET /" + std::string(kHeadBytesMax, 'a')), HeadScanner::Result::kTooLong);
}

// Feeds `in` in pieces of `step`; returns the bytes that were left over, or "broken" or "more".
std::string read_body(BodyReader& body, std::string_view in, std::size_t step) {
  while (!in.empty()) {
    std::string_view piece = in.substr(0, step);
    const std::size_t before = piece.size();
    const auto result = body.consume(piece);
    in.remove_prefix(before - piece.size());
    if (result == BodyReader::Result::kBroken) return "broken";
    if (result == BodyReader::Result::kDone) return std::string(in);
  }
  return "more";
}

TEST(HttpBody, ReadsChunksHoweverTheyArePackaged) {
  constexpr std::string_view kBody =
      "5\r\nhello\r\n1;ext=\"v\"\r\n \r\n0A\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nGET";
  for (std::size_t step = 1; step <= kBody.size(); ++step) {
    BodyReader body;
    body.start_chunked(true);
    EXPECT_EQ(read_body(body, kBody, step), "GET") << step;
    EXPECT_EQ(body.received(), 16u);
    EXPECT_EQ(body.fnv1a64(), 0x174d'5e94'0da8'b2ceu) << step;
  }
}

TEST(HttpBody, RefusesBrokenChunks) {
  for (const char* broken :
       {"\r\n", "g\r\n", "5\nhello\r\n", "5\r\nhelloX", "5 \r\nhello\r\n", "-1\r\n",
        "1000000000000000\r\n", "0\r\n\n", "0\r\nX: y\n\r\n", "1;\n\r\n", "5\r\nhello\n"}) {
    BodyReader body;
    body.start_chunked(false);
    EXPECT_EQ(read_body(body, broken, 100), "broken") << broken;
  }
}

TEST(HttpBody, LengthTakesExactlyItsBytes) {
  BodyReader body;
  body.start_length(5, false);
  EXPECT_EQ(read_body(body, "helloGET", 3), "GET");
  EXPECT_EQ(body.received(), 5u);
}

}  // namespace
}  // namespace examples

// HttpSession: one HTTP/1.x connection.
//
// Role: takes requests out of the received bytes (in place, when a head arrives whole) and sends
//   their answers in order. While an answer waits for the client to take it, the bytes behind it
//   are set aside and the client's window stays closed by as much.
// Owner: the library, from accept() to on_closed(). Thread: the Node's.
// Invariants: at most one answer is under way; set_aside_ holds at most a receive window.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "appnode-lib/examples/http_body.h"
#include "appnode-lib/examples/http_parser.h"
#include "appnode-lib/examples/http_site.h"
#include "sanproxy/appnode.h"

namespace examples {

class HttpSession;
using HttpSessions = std::vector<HttpSession*>;  // those that live, in any order

class HttpSession final : public app::ConnectionHandler {
 public:
  // Both outlive it: `all` the Node, too.
  HttpSession(HttpSite& site, HttpSessions& all);
  ~HttpSession() override;
  HttpSession(const HttpSession&) = delete;
  HttpSession& operator=(const HttpSession&) = delete;

  static void accept(app::Request& request, HttpSite& site, HttpSessions& all);
  // Stopping: connections on which nothing is asked are ended; the others when nothing is any more.
  static void end_idle(const HttpSessions& all);

  void on_data(app::Connection& connection, app::Received& data) override;
  void on_writable(app::Connection& connection) override;
  void on_end_of_stream(app::Connection& connection) override;

 private:
  enum class State : std::uint8_t { kHead, kBody, kAnswer, kDone };

  bool is_idle() const;
  // Uses up what it can of `in`; stops while an answer is under way.
  void feed(app::Connection& connection, std::string_view& in);
  void feed_head(app::Connection& connection, std::string_view& in);
  void feed_body(app::Connection& connection, std::string_view& in);
  void on_head(app::Connection& connection, std::string_view head);
  void respond(app::Connection& connection);
  void refuse(app::Connection& connection, int status);
  void start(app::Connection& connection, std::string_view body);
  void pump(app::Connection& connection);
  bool pump_content(app::Connection& connection);
  std::size_t pump_file(app::Connection& connection);
  void end(app::Connection& connection);

  HttpSite& site_;
  HttpSessions& all_;
  std::size_t place_ = 0;  // there
  app::Connection* connection_ = nullptr;
  State state_ = State::kHead;
  bool lone_cr_ = false;  // of an empty line in front of a request, without its LF yet
  bool close_after_ = false;
  bool client_is_done_ = false;
  bool old_client_ = false;     // HTTP/1.0: keep-alive must be said
  bool receives_path_ = false;  // /upload or /sink
  bool receives_ = false;       // ... with a method that they take
  bool hashes_ = false;
  bool head_only_ = false;
  HeadScanner scanner_;
  BodyReader body_;
  Content content_;         // of the answer
  std::string location_;    // of a 301
  std::uint64_t sent_ = 0;  // of the content
  std::string partial_head_;
  std::string unsent_;     // bytes of the answer's head, or all of a small answer
  std::string set_aside_;  // received, not yet looked at, not yet credited
};

}  // namespace examples

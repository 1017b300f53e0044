// Well-formed messages that break the contract of a stream: the stream ends with kProtocolError,
// the channel goes on.
#include "tests/rogue/cases.h"

namespace sanproxy::rogue {
namespace {

using wire::CloseCode;
using wire::MessageType;

// `act` misbehaves on a connection that the proxy asked us about; the stream must end with
// kProtocolError, the client must be reset, and the channel must go on.
Case breach(const char* name, const char* rule, std::function<void(Asked&)> act) {
  return {name, rule, [act = std::move(act)](const Context& context) -> Verdict {
            Asked asked(context);
            if (!asked.ok()) return "no CONNECTION_REQUEST came";
            act(asked);
            Verdict verdict =
                stream_closed(asked.channel, asked.connection, CloseCode::kProtocolError);
            if (!verdict.empty()) return verdict;
            // A FIN that was sent before the breach comes first.
            std::string end = asked.client->end();
            if (end == "fin" && asked.client->is_reset()) end = "reset";
            if (end != "reset") return "the client's connection is " + end;
            return channel_lives(asked.channel, context);
          }};
}

void close(Asked& a, CloseCode code, std::uint64_t offset = 0) {
  a.channel.send_one(MessageType::kCloseConnection, wire::CloseConnectionBody{a.connection, offset},
                     0, code);
}

void credit(Asked& a, std::uint64_t freed) {
  a.channel.send_one(MessageType::kCredit, wire::CreditBody{a.connection, freed, 0});
}

void reject(Asked& a) {
  a.channel.send_one(MessageType::kRejectConnection, wire::RejectConnectionBody{a.connection, 0, 0},
                     0, CloseCode::kRefused);
}

// Sends until well beyond the window. The client reads nothing, so beyond its own buffers nothing
// is freed.
void overrun(Asked& a) {
  a.accept();
  for (std::uint64_t offset = 0; offset < std::uint64_t{256} << 20; offset += 65536) {
    a.channel.poll();
    if (a.channel.ended() || a.channel.holds(a.connection, MessageType::kCloseConnection)) return;
    if (!a.data(offset, 65536)) return;
  }
}

std::vector<Case> data_cases() {
  return {
      breach("data_before_accept", "S3: no DATA before ACCEPT", [](Asked& a) { a.data(0, 100); }),
      breach("fin_both_before_accept", "S3: no CLOSE before ACCEPT",
             [](Asked& a) { close(a, CloseCode::kFinBoth); }),
      breach("close_before_accept", "S3: no CLOSE before ACCEPT",
             [](Asked& a) { close(a, CloseCode::kFin); }),
      breach("data_offset_gap", "S6: offsets have no gap",
             [](Asked& a) {
               a.accept();
               a.data(0, 100);
               a.data(101, 100);
             }),
      breach("data_offset_overlap", "S6: offsets do not overlap",
             [](Asked& a) {
               a.accept();
               a.data(0, 100);
               a.data(99, 100);
             }),
      breach("data_offset_repeated", "S6: offsets do not repeat",
             [](Asked& a) {
               a.accept();
               a.data(0, 60000);
               a.data(0, 60000);
             }),
      breach("data_offset_huge", "S6: offsets have no gap",
             [](Asked& a) {
               a.accept();
               a.data(~std::uint64_t{0} - 50, 100);
             }),
      breach("data_reference_offset_gap", "S6: offsets have no gap",
             [](Asked& a) {
               a.accept();
               a.data(5, 60000);
             }),
      breach("data_window_overrun", "S7: no more than the window is sent", overrun),
  };
}

std::vector<Case> close_cases() {
  return {
      breach("data_behind_fin", "S8: nothing behind the end of a direction",
             [](Asked& a) {
               a.accept();
               close(a, CloseCode::kFin);
               a.data(0, 100);
             }),
      breach("fin_offset_beyond", "S9: a FIN names the bytes that were sent",
             [](Asked& a) {
               a.accept();
               a.data(0, 100);
               close(a, CloseCode::kFin, 101);
             }),
      breach("fin_offset_short", "S9: a FIN names the bytes that were sent",
             [](Asked& a) {
               a.accept();
               a.data(0, 100);
               close(a, CloseCode::kFin, 99);
             }),
      breach("fin_both_offset", "S9: a FIN names the bytes that were sent",
             [](Asked& a) {
               a.accept();
               close(a, CloseCode::kFinBoth, 1);
             }),
      breach("fin_twice", "S10: a direction ends once",
             [](Asked& a) {
               a.accept();
               close(a, CloseCode::kFin);
               close(a, CloseCode::kFin);
             }),
  };
}

std::vector<Case> ledger_cases() {
  return {
      breach("accept_twice", "S4: a connection is accepted once",
             [](Asked& a) {
               a.accept();
               a.accept();
             }),
      breach("reject_behind_accept", "S4: an accepted connection is not rejected",
             [](Asked& a) {
               a.accept();
               reject(a);
             }),
      breach("accept_window_above_hello", "S5: a window is at most HELLO's",
             [](Asked& a) { a.accept(256 * 1024 + 1); }),
      breach("accept_window_below_early_data", "S5: early data always fits",
             [](Asked& a) { a.accept(65535); }),
      breach("credit_beyond_received", "S12: no more is freed than was sent",
             [](Asked& a) {
               a.accept();
               credit(a, 101);
             }),
      breach("credit_huge", "S12: no more is freed than was sent",
             [](Asked& a) {
               a.accept();
               credit(a, ~std::uint64_t{0});
             }),
      breach("credit_acknowledges", "S13: only the proxy acknowledges",
             [](Asked& a) {
               a.accept();
               a.channel.send_one(MessageType::kCredit, wire::CreditBody{a.connection, 1, 1});
             }),
      breach("credit_back", "S12: a freed offset never goes back",
             [](Asked& a) {
               a.accept();
               a.channel.take([](const wire::Message& m) { return m.type == MessageType::kData; });
               credit(a, 100);
               credit(a, 50);
             }),
  };
}

Case late(const char* name, const char* rule, CloseCode first) {
  return {name, rule, [first](const Context& context) -> Verdict {
            Asked asked(context);
            if (!asked.ok() || !asked.accept()) return "no CONNECTION_REQUEST came";
            close(asked, first);
            for (int i = 0; i < 3; ++i) {
              asked.accept();
              asked.data(0, 100);
              asked.data(777, 5000);
              credit(asked, 12345);
              close(asked, CloseCode::kFin, 99);
              reject(asked);
            }
            const std::string end = asked.client->end();
            if (end != (first == CloseCode::kFinBoth ? "fin" : "reset")) {
              return "the client's connection is " + end;
            }
            return channel_lives(asked.channel, context);
          }};
}

std::vector<Case> late_cases() {
  return {
      late("late_after_reset", "S11: what comes behind an abortive CLOSE is ignored",
           CloseCode::kReset),
      late("late_after_fin_both", "S11: what comes behind kFinBoth is ignored",
           CloseCode::kFinBoth),
      {"late_after_reject", "S2: what is dead is ignored",
       [](const Context& context) -> Verdict {
         Asked asked(context);
         if (!asked.ok()) return "no CONNECTION_REQUEST came";
         reject(asked);
         asked.accept();
         asked.data(0, 100);
         const std::string end = asked.client->end();
         if (end != "reset") return "the rejected client's connection is " + end;
         return channel_lives(asked.channel, context);
       }},
      {"late_after_client_reset", "S2: what is dead is ignored",
       [](const Context& context) -> Verdict {
         Asked asked(context);
         if (!asked.ok() || !asked.accept()) return "no CONNECTION_REQUEST came";
         asked.client->reset();
         if (Verdict v = stream_closed(asked.channel, asked.connection, CloseCode::kReset);
             !v.empty()) {
           return v;
         }
         asked.data(0, 100);
         close(asked, CloseCode::kFin, 100);
         return channel_lives(asked.channel, context);
       }},
  };
}

}  // namespace

std::vector<Case> stream_cases() {
  std::vector<Case> out;
  for (auto make : {data_cases, close_cases, ledger_cases, late_cases}) {
    for (Case& one : make()) out.push_back(std::move(one));
  }
  return out;
}

}  // namespace sanproxy::rogue

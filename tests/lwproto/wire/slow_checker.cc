#include "tests/lwproto/wire/slow_checker.h"

#include <set>

namespace sanproxy::wire::slow {
namespace {

using Bytes = std::span<const std::uint8_t>;

std::uint64_t number(Bytes bytes, std::size_t at, std::size_t size) {
  std::uint64_t value = 0;
  for (std::size_t i = size; i > 0; --i) value = value * 256 + bytes[at + i - 1];
  return value;
}

bool zeros(Bytes bytes, std::size_t from, std::size_t to) {
  for (std::size_t i = from; i < to; ++i) {
    if (bytes[i] != 0) return false;
  }
  return true;
}

bool address_ok(Bytes body, std::size_t at, bool may_be_absent) {
  const int family = body[at + 18];
  if (may_be_absent && family == 0) return zeros(body, at, at + 24);
  if (!zeros(body, at + 19, at + 24)) return false;
  return family == 6 || (family == 4 && zeros(body, at + 4, at + 16));
}

bool window_ok(std::uint64_t window) { return window >= 1 && window <= 1073741824; }

const std::set<int> kAnswers = {4, 7, 8, 9, 10, 11, 12, 15};
const std::set<int> kRejects = {3, 4, 5, 7, 8, 9, 10, 11, 12, 14, 15};
const std::set<int> kCloses = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14};
const std::set<int> kErrors = {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};

std::size_t body_size(int type) {
  switch (type) {
    case 2:
      return 40;
    case 3:
      return 8;
    case 4:
      return 8;
    case 5:
      return 88;
    case 6:
      return 56;
    case 7:
      return 16;
    case 8:
      return 16;
    case 9:
      return 16;
    case 10:
      return 24;
    case 11:
      return 8;
    case 12:
      return 72;
    case 13:
      return 16;
    case 14:
    case 15:
      return 8;
    default:
      return 0;
  }
}

bool join_ok(const Reading& m, Bytes b) {
  const bool answer = m.flags == 1;
  if (m.flags != 0 && m.flags != 1 && m.flags != 4) return false;
  if (m.code != 0 && !(answer && kAnswers.count(m.code))) return false;
  if (!address_ok(b, 0, false) || number(b, 16, 2) == 0) return false;
  const auto service = number(b, 28, 4);
  if ((answer && m.code == 0) ? service == 0 : service != 0) return false;
  const auto weight = number(b, 32, 4);
  return weight <= 65535 && (answer || weight >= 1);
}

bool service_ok(const Reading& m, Bytes b) {
  if (m.flags > 1 || number(b, 0, 4) == 0) return false;
  if (m.code == 0) return true;
  if (m.flags == 1) return kAnswers.count(m.code) != 0;
  return m.type == 4 && (m.code == 7 || m.code == 8 || m.code == 10) && number(b, 4, 4) == 0;
}

bool request_ok(const Reading& m, Bytes b) {
  const bool active = m.flags == 2;
  if ((m.flags != 0 && !active) || m.code != 0) return false;
  if (!address_ok(b, 16, false) || !address_ok(b, 40, active)) return false;
  if (b[58] != 0 && b[58] != b[34]) return false;
  if (!window_ok(number(b, 80, 4))) return false;
  const bool has_connection = number(b, 0, 8) != 0;
  const bool has_request = number(b, 12, 4) != 0;
  if (active) {
    return !has_connection && has_request && number(b, 32, 2) != 0 && zeros(b, 64, 80) &&
           zeros(b, 84, 88);
  }
  return has_connection && !has_request && number(b, 8, 4) != 0 && b[74] <= 14 && b[75] <= 14 &&
         number(b, 76, 4) <= 7;
}

bool accept_ok(const Reading& m, Bytes b) {
  if (m.flags != 0 || m.code != 0 || number(b, 0, 8) == 0 || !window_ok(number(b, 12, 4))) {
    return false;
  }
  if (number(b, 8, 4) == 0) return zeros(b, 16, 56);
  return address_ok(b, 16, false) && b[50] <= 14 && b[51] <= 14 && number(b, 52, 4) <= 7;
}

bool authenticate_ok(const Reading& m, Bytes b) {
  if (m.flags > 1 || !zeros(b, 4, 8)) return false;
  if (m.code != 0 && (m.flags != 1 || !kAnswers.count(m.code) || !zeros(b, 40, 72))) return false;
  static const std::string kLetters =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  std::size_t at = 8;
  while (at < 40 && b[at] != 0 && kLetters.find(static_cast<char>(b[at])) != std::string::npos) {
    ++at;
  }
  return at > 8 && zeros(b, at, 40);
}

bool packet_ok(const Reading& m, Bytes b) {
  if (m.flags > 15 || m.code != 0 || !zeros(b, 9, 16)) return false;
  const std::size_t sum_at = number(b, 4, 2) + number(b, 6, 2);
  if (m.flags % 2 == 1 ? sum_at + 2 > m.payload_bytes : sum_at != 0) return false;
  const bool segments = b[8] == 1 || b[8] == 4;
  return number(b, 2, 2) <= m.payload_bytes && (segments || b[8] == 0) &&
         segments == (number(b, 0, 2) != 0);
}

bool status_ok(const Reading& m, Bytes b) {
  return m.flags <= 1 && m.code == 0 && number(b, 0, 4) <= 65535 && number(b, 4, 2) <= 1023 &&
         zeros(b, 6, 8);
}

bool heartbeat_ok(const Reading& m, Bytes b) {
  return m.flags <= 1 && m.code == 0 && (m.flags == 0 || zeros(b, 4, 8));
}

bool fields_ok(const Reading& m) {
  const Bytes b = m.body;
  switch (m.type) {
    case 2:
      return join_ok(m, b);
    case 3:
    case 4:
      return service_ok(m, b);
    case 5:
      return request_ok(m, b);
    case 6:
      return accept_ok(m, b);
    case 7:
      return m.flags == 0 && kRejects.count(m.code) != 0 && zeros(b, 12, 16) &&
             (number(b, 0, 8) != 0) != (number(b, 8, 4) != 0);
    case 8:
      return m.flags == 0 && m.code == 0 && number(b, 0, 8) != 0;
    case 9:
      return m.flags == 0 && kCloses.count(m.code) != 0 && number(b, 0, 8) != 0;
    case 10:
      return m.flags == 0 && m.code == 0 && number(b, 0, 8) != 0 &&
             number(b, 16, 8) <= number(b, 8, 8);
    case 11:
      return m.flags == 0 && kErrors.count(m.code) != 0;
    case 12:
      return authenticate_ok(m, b);
    case 13:
      return packet_ok(m, b);
    case 14:
      return status_ok(m, b);
    case 15:
      return heartbeat_ok(m, b);
    default:
      return false;
  }
}

// Reads one message at `at`; returns the position behind it, or 0 with `broken` set.
std::size_t read_message(Bytes head, std::size_t rest_bytes, std::size_t at, bool last,
                         Reading& out, std::string& broken) {
  const auto fail = [&](const char* why) {
    broken = why;
    return std::size_t{0};
  };
  if (at + 8 > head.size()) return fail("header outside");
  out.type = head[at];
  out.flags = head[at + 1];
  out.code = static_cast<std::uint16_t>(number(head, at + 2, 2));
  const std::size_t length = number(head, at + 4, 4);
  const std::size_t fixed = body_size(out.type);
  if (fixed == 0) return fail("type");
  if (at + 8 + fixed > head.size()) return fail("body outside");
  out.body.assign(head.begin() + static_cast<std::ptrdiff_t>(at + 8),
                  head.begin() + static_cast<std::ptrdiff_t>(at + 8 + fixed));
  if (length < 8 + fixed) return fail("too short");
  out.payload_bytes = length - 8 - fixed;
  out.payload_at = at + 8 + fixed;
  if (!fields_ok(out)) return fail("fields");
  if (out.type == 8 || out.type == 13) {
    if (out.payload_bytes < (out.type == 8 ? 1 : 20) || out.payload_bytes > 65536)
      return fail("payload size");
    if (out.payload_bytes > 1024) {
      if (!last || out.payload_at > 8192) return fail("reference not last or too far");
      const std::size_t behind = head.size() - out.payload_at;
      out.in_rest = rest_bytes > 0;
      const bool fits = out.in_rest ? behind == 0 && rest_bytes == out.payload_bytes
                                    : behind == out.payload_bytes;
      return fits ? head.size() : fail("reference is not the rest");
    }
  } else if (out.type == 11) {
    if (out.payload_bytes > 256 || number(out.body, 4, 4) != out.payload_bytes) {
      return fail("text size");
    }
  } else if (out.payload_bytes != 0) {
    return fail("too long");
  }
  std::size_t end = at + length;
  if (end > head.size()) return fail("outside");
  while (end % 8 != 0) {
    if (end >= head.size() || head[end] != 0) return fail("padding");
    ++end;
  }
  if (end > 8192) return fail("inline part too long");
  if (last && (end != head.size() || rest_bytes != 0)) return fail("bytes behind the last");
  return end;
}

}  // namespace

Verdict check(std::span<const std::uint8_t> head, std::size_t rest_bytes) {
  Verdict out;
  const std::size_t total = head.size() + rest_bytes;
  if (head.size() < 8 || total > 73728 || number(head, 6, 2) != 0) {
    out.broken = "transfer header";
    return out;
  }
  const std::size_t count = number(head, 4, 2);
  if (count == 0 && total != 8) out.broken = "bytes without messages";
  std::size_t at = 8;
  for (std::size_t i = 0; i < count && out.broken.empty(); ++i) {
    Reading reading;
    at = read_message(head, rest_bytes, at, i + 1 == count, reading, out.broken);
    if (out.broken.empty()) out.messages.push_back(reading);
  }
  return out;
}

}  // namespace sanproxy::wire::slow

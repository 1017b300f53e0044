#include "lwproto/fabric/verbs/handshake.h"

#include <sys/random.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <concepts>
#include <iterator>
#include <type_traits>

namespace sanproxy::fabric::verbs {
namespace {

// Numbers go out and come in byte by byte, so the host's order does not matter.
class Writer {
 public:
  explicit Writer(std::span<std::byte> out) : out_(out) {}
  template <std::integral T>
  void put(T value) {
    std::uint64_t rest = static_cast<std::make_unsigned_t<T>>(value);
    for (std::size_t i = 0; i < sizeof(T); ++i, rest >>= 8) {
      out_[used_++] = static_cast<std::byte>(rest & 0xff);
    }
  }
  void put(std::span<const std::byte> bytes) {
    std::copy(bytes.begin(), bytes.end(), out_.begin() + static_cast<std::ptrdiff_t>(used_));
    used_ += bytes.size();
  }
  void zero_until(std::size_t end) {
    while (used_ < end) out_[used_++] = std::byte{0};
  }
  std::size_t used() const { return used_; }

 private:
  std::span<std::byte> out_;
  std::size_t used_ = 0;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> in) : in_(in) {}
  template <std::integral T>
  T get() {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      value |= static_cast<std::uint64_t>(in_[used_++]) << (8 * i);
    }
    return static_cast<T>(value);
  }
  void get(std::span<std::byte> out) {
    for (std::byte& byte : out) byte = in_[used_++];
  }
  void skip(std::size_t bytes) { used_ += bytes; }

 private:
  std::span<const std::byte> in_;
  std::size_t used_ = 0;
};

bool sizes_possible(const CmHeader& header) {
  return header.receive_depth != 0 && header.transfer_bytes_max >= header.inline_bytes_max &&
         header.inline_bytes_max != 0 && header.inline_bytes_max <= kInlineBytesLimit;
}

// Behind the index of the queue pair.
constexpr std::size_t kTokenAt = 28;

// Literal texts, because a Status does not own its text; by the number of the bit.
constexpr const char* kRefusedByPeer[] = {
    "the peer cannot honour link parameter window",
    "the peer cannot honour link parameter streams",
    "the peer cannot honour link parameter queue_pairs",
    "the peer cannot honour link parameter skip_slow_start",
    "the peer cannot honour link parameter congestion",
    "the peer cannot honour link parameter quality",
    "the peer cannot honour link parameter rate",
    "the peer cannot honour link parameter peak",
    "the peer cannot honour link parameter burst",
    "the peer cannot honour link parameter dscp",
    "the peer cannot honour link parameter priority",
    "the peer cannot honour link parameter service_level",
    "the peer cannot honour link parameter traffic_class",
};
static_assert(std::size(kRefusedByPeer) == std::countr_zero(std::uint32_t{kLinkTrafficClass}) + 1);

// RFC 8622: for what is left over.
constexpr std::int16_t kLowerEffortTrafficClass = 1 << 2;

}  // namespace

std::array<std::byte, kCmHeaderBytes> encode(const CmHeader& header) {
  std::array<std::byte, kCmHeaderBytes> out{};
  Writer writer(out);
  writer.put(kMagic);
  writer.put(kVersion);
  writer.put(static_cast<std::uint16_t>(header.verdict));
  writer.put(header.receive_depth);
  writer.put(header.inline_bytes_max);
  writer.put(header.transfer_bytes_max);
  writer.put(header.traffic_class);
  writer.put(header.service_level);
  writer.put(header.queue_pairs);
  writer.put(header.queue_pair);
  writer.zero_until(kTokenAt);
  writer.put(header.token.bytes);
  return out;
}

Result<CmHeader> decode_cm_header(std::span<const std::byte> bytes) {
  if (bytes.size() < kCmHeaderBytesMin) {
    return Status::error(Code::kProtocol, "the peer's connection header is short");
  }
  std::array<std::byte, kCmHeaderBytes> padded{};
  std::copy_n(bytes.begin(), std::min(bytes.size(), padded.size()), padded.begin());
  Reader reader(padded);
  if (reader.get<std::uint32_t>() != kMagic) {
    return Status::error(Code::kProtocol, "the peer speaks another protocol");
  }
  if (reader.get<std::uint16_t>() != kVersion) {
    return Status::error(Code::kUnsupported, "the peer speaks another version");
  }
  CmHeader header;
  header.verdict = static_cast<Verdict>(reader.get<std::uint16_t>());
  header.receive_depth = reader.get<std::uint32_t>();
  header.inline_bytes_max = reader.get<std::uint32_t>();
  header.transfer_bytes_max = reader.get<std::uint32_t>();
  header.traffic_class = reader.get<std::int16_t>();
  header.service_level = reader.get<std::int8_t>();
  header.queue_pairs = std::max<std::uint8_t>(reader.get<std::uint8_t>(), 1);
  header.queue_pair = reader.get<std::uint8_t>();
  reader.skip(kTokenAt - kCmHeaderBytesMin - 1);
  reader.get(header.token.bytes);
  if (header.verdict == Verdict::kNone && !sizes_possible(header)) {
    return Status::error(Code::kProtocol, "the peer's sizes are impossible");
  }
  if (header.traffic_class < -1 || header.traffic_class > 255 || header.service_level < -1 ||
      header.service_level > 15) {
    return Status::error(Code::kProtocol, "the peer's class of service is impossible");
  }
  if (header.queue_pairs > kQueuePairsMax || header.queue_pair >= header.queue_pairs) {
    return Status::error(Code::kProtocol, "the peer's number of queue pairs is impossible");
  }
  return header;
}

Result<ChannelToken> make_channel_token() {
  ChannelToken out;
  if (::getrandom(out.bytes.data(), out.bytes.size(), 0) !=
      static_cast<ssize_t>(out.bytes.size())) {
    return Status::error(Code::kSystem, "get random bytes", errno);
  }
  return out;
}

bool same_channel(const ChannelToken& a, const ChannelToken& b) {
  std::byte differing{0};
  std::byte any{0};
  for (std::size_t i = 0; i < a.bytes.size(); ++i) {
    differing |= a.bytes[i] ^ b.bytes[i];
    any |= a.bytes[i];
  }
  return differing == std::byte{0} && any != std::byte{0};
}

Status check_asked_link(const LinkParameters& link) {
  if (Status status = check_link(link); !status.ok()) return status;
  if (link.dscp >= 0 && link.traffic_class >= 0 && link.traffic_class >> 2 != link.dscp) {
    return Status::error(Code::kInvalidArgument,
                         "link parameter dscp: traffic_class says something else");
  }
  return require_link(link, kHonoured);
}

std::uint32_t refused_field(const LinkParameters& link) {
  if (check_asked_link(link).ok()) return 0;
  // What is not there at all, or else the first that plays a part in the contradiction.
  const std::uint32_t fields = link_fields(link);
  const std::uint32_t foreign = fields & ~kHonoured;
  const std::uint32_t told = foreign != 0 ? foreign : fields & ~std::uint32_t{kLinkWindow};
  return told != 0 ? std::uint32_t{1} << std::countr_zero(told) : std::uint32_t{kLinkWindow};
}

Status field_refused_by_peer(std::uint32_t field) {
  const auto bit = static_cast<std::size_t>(std::countr_zero(field));
  return Status::error(Code::kRefused, bit < std::size(kRefusedByPeer)
                                           ? kRefusedByPeer[bit]
                                           : "the peer refused a link parameter");
}

std::int16_t traffic_class_of(const LinkParameters& link) {
  if (link.traffic_class != -1) return link.traffic_class;
  if (link.dscp != -1) return static_cast<std::int16_t>(link.dscp << 2);
  return link.quality == QualityClass::kUnspecified ? kLowerEffortTrafficClass : std::int16_t{-1};
}

std::size_t encode_hello(const LinkParameters& link, std::span<const std::byte> private_data,
                         std::span<std::byte> out) {
  Writer writer(out);
  writer.put(static_cast<std::uint32_t>(private_data.size()));
  writer.put(link.queue_pairs);
  writer.put(link.window_bytes);
  writer.put(link.rate_bytes_per_s);
  writer.put(link.peak_bytes_per_s);
  writer.put(link.burst_bytes);
  writer.put(link.traffic_class);
  writer.put(static_cast<std::uint8_t>(link.quality));
  writer.put(link.dscp);
  writer.put(link.service_level);
  writer.zero_until(kHelloHeaderBytes);
  writer.put(private_data);
  return writer.used();
}

Result<Hello> decode_hello(std::span<const std::byte> bytes) {
  if (bytes.size() < kHelloHeaderBytes) return Status::error(Code::kProtocol, "a short hello");
  Reader reader(bytes);
  const std::span<const std::byte> private_data = bytes.subspan(kHelloHeaderBytes);
  if (reader.get<std::uint32_t>() != private_data.size() ||
      private_data.size() > kPrivateDataBytesMax) {
    return Status::error(Code::kProtocol, "a malformed hello");
  }
  Hello hello;
  hello.link.queue_pairs = reader.get<std::uint32_t>();
  hello.link.window_bytes = reader.get<std::uint64_t>();
  hello.link.rate_bytes_per_s = reader.get<std::uint64_t>();
  hello.link.peak_bytes_per_s = reader.get<std::uint64_t>();
  hello.link.burst_bytes = reader.get<std::uint64_t>();
  hello.link.traffic_class = reader.get<std::int16_t>();
  const auto quality = reader.get<std::uint8_t>();
  if (quality > static_cast<std::uint8_t>(QualityClass::kUnspecified)) {
    return Status::error(Code::kProtocol, "a hello with an unknown quality");
  }
  hello.link.quality = static_cast<QualityClass>(quality);
  hello.link.dscp = reader.get<std::int8_t>();
  hello.link.service_level = reader.get<std::int8_t>();
  hello.private_data.assign(private_data.begin(), private_data.end());
  return hello;
}

std::size_t encode_answer(std::span<const std::byte> private_data, std::span<std::byte> out) {
  Writer writer(out);
  writer.put(static_cast<std::uint32_t>(private_data.size()));
  writer.zero_until(kAnswerHeaderBytes);
  writer.put(private_data);
  return writer.used();
}

Result<std::vector<std::byte>> decode_answer(std::span<const std::byte> bytes) {
  if (bytes.size() < kAnswerHeaderBytes) return Status::error(Code::kProtocol, "a short answer");
  Reader reader(bytes);
  const std::span<const std::byte> private_data = bytes.subspan(kAnswerHeaderBytes);
  if (reader.get<std::uint32_t>() != private_data.size() ||
      private_data.size() > kPrivateDataBytesMax) {
    return Status::error(Code::kProtocol, "a malformed answer");
  }
  return std::vector<std::byte>(private_data.begin(), private_data.end());
}

}  // namespace sanproxy::fabric::verbs

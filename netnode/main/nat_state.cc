#include "netnode/main/nat_state.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <type_traits>
#include <vector>

#include "lwproto/base/status.h"
#include "lwproto/base/unique_fd.h"
#include "netnode/net/flow_key.h"

namespace sanproxy::netnode {
namespace {

// Host byte order: the file does not leave its host. All are multiples of eight bytes.
struct Header {
  std::array<char, 8> magic{};
  std::uint32_t version = 0;
  std::uint32_t record_bytes = 0;
  std::uint64_t records = 0;
  std::uint32_t names = 0;
  std::uint32_t saved_s = 0;
  std::array<char, 40> boot{};
};
struct Name {
  std::array<char, 72> text{};  // of a proxy, with a zero at the end
};
struct Record {
  net::FlowKey client, proxy;
  std::uint32_t used_s = 0;
  std::uint32_t proxy_seq = 0;
  std::uint16_t name = 0;
  std::uint8_t flags = 0;
  std::uint8_t timer = 0;
  std::uint32_t zero = 0;
};
static_assert(sizeof(Header) == 72 && sizeof(Name) == 72 && sizeof(Record) == 96);
static_assert(std::is_trivially_copyable_v<Record>);

constexpr std::array<char, 8> kMagic = {'S', 'A', 'N', 'N', 'A', 'T', '\r', '\n'};
constexpr std::uint32_t kVersion = 1;

struct Closer {
  void operator()(std::FILE* file) const { (void)std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Closer>;

// Tells a file that was cut or spoiled, not one that was forged: it is its user's own.
class Sum {
 public:
  template <typename T>
  void add(const T& what) {
    std::array<std::uint64_t, sizeof(T) / 8> words;
    std::memcpy(words.data(), &what, sizeof(T));
    for (const std::uint64_t word : words) {
      value_ = net::multiply_mix(value_ ^ word, 0x9e3779b97f4a7c15U) + 1;
    }
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 1;
};

template <typename T>
bool put(std::FILE* file, const T& what, Sum& sum) {
  sum.add(what);
  return std::fwrite(&what, sizeof(T), 1, file) == 1;
}

template <typename T>
bool get(std::FILE* file, T& what, Sum& sum) {
  if (std::fread(&what, sizeof(T), 1, file) != 1) return false;
  sum.add(what);
  return true;
}

template <std::size_t N>
void copy_text(std::array<char, N>& to, const std::string& from) {
  std::copy_n(from.begin(), std::min(from.size(), N - 1), to.begin());
}

bool write_all(std::FILE* file, const std::string& boot, const steer::Forwarder& forwarder,
               std::uint32_t now_s) {
  const auto proxies = forwarder.proxies();
  Sum sum;
  Header header{kMagic,
                kVersion,
                sizeof(Record),
                forwarder.nat().sessions(),
                static_cast<std::uint32_t>(proxies.size()),
                now_s,
                {}};
  copy_text(header.boot, boot);
  bool good = put(file, header, sum);
  for (const steer::Forwarder::Proxy& proxy : proxies) {
    Name name;
    copy_text(name.text, proxy.config.name);
    good = good && put(file, name, sum);
  }
  forwarder.nat().each([&](const steer::Nat::Saved& s) {
    const Record record{s.client,      s.proxy, s.used_s, s.proxy_seq,
                        s.proxy_index, s.flags, s.timer,  0};
    good = good && put(file, record, sum);
  });
  const std::uint64_t end = sum.value();
  return good && put(file, end, sum) && std::fflush(file) == 0;
}

// Whether a session may still go to its proxy there.
bool goes_there(const steer::ProxyConfig& proxy, const Record& record) {
  return proxy.mode == steer::Mode::kNat &&
         std::any_of(proxy.targets.begin(), proxy.targets.end(), [&](const SocketAddress& target) {
           const std::uint16_t port = target.port != 0 ? target.port : record.client.dst_port;
           return target.ip.family == record.proxy.family && target.ip.bytes == record.proxy.src &&
                  port == record.proxy.src_port;
         });
}

bool read_names(std::FILE* file, std::uint32_t count, std::vector<std::string>& names, Sum& sum) {
  for (std::uint32_t i = 0; i < count; ++i) {
    Name name;
    if (!get(file, name, sum)) return false;
    names.emplace_back(name.text.data(), strnlen(name.text.data(), name.text.size()));
  }
  return true;
}

UniqueFd open_beside(const std::string& path) {
  return UniqueFd(
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600));
}

std::string check_header(const Header& header, const std::string& boot, std::uint32_t now_s) {
  if (header.magic != kMagic) return "it is no file of ours";
  if (header.version != kVersion || header.record_bytes != sizeof(Record)) {
    return "it is of version " + std::to_string(header.version);
  }
  std::array<char, 40> expected{};
  copy_text(expected, boot);
  if (boot.empty() || header.boot != expected || header.saved_s > now_s) {
    return "it is from before the last boot";
  }
  return header.names > steer::kProxiesMax ? "it has too many proxies" : "";
}

// Both passes: the first one looks whether all is there.
std::string read_all(std::FILE* file, const std::string& boot, steer::Forwarder& forwarder,
                     std::uint32_t now_s, NatStateResult* take) {
  std::rewind(file);
  Sum sum;
  Header header;
  if (!get(file, header, sum)) return "it ends too early";
  if (std::string wrong = check_header(header, boot, now_s); !wrong.empty()) return wrong;
  std::vector<std::string> names;
  if (!read_names(file, header.names, names, sum)) return "it ends too early";
  std::vector<std::uint16_t> places;
  places.reserve(names.size());
  for (const std::string& name : names) {
    places.push_back(name.empty() ? steer::FlowTable::kNone : forwarder.find(name));
  }
  for (std::uint64_t i = 0; i < header.records; ++i) {
    Record record;
    if (!get(file, record, sum)) return "it ends too early";
    if (take == nullptr) continue;
    const std::uint16_t place =
        record.name < places.size() ? places[record.name] : steer::FlowTable::kNone;
    const bool good = place != steer::FlowTable::kNone &&
                      goes_there(forwarder.proxies()[place].config, record) &&
                      forwarder.nat().restore({record.client, record.proxy, record.used_s,
                                               record.proxy_seq, place, record.flags, record.timer},
                                              now_s);
    ++(good ? take->sessions : take->left_out);
  }
  const std::uint64_t expected = sum.value();
  std::uint64_t end = 0;
  if (!get(file, end, sum) || end != expected || std::fgetc(file) != EOF) {
    return "its checksum is wrong";
  }
  return {};
}

}  // namespace

std::string boot_id() {
  std::string out;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id") >> std::ws, out);
  return out;
}

std::string why_unwritable(const std::string& path) {
  struct stat there {};
  if (::lstat(path.c_str(), &there) == 0 && S_ISDIR(there.st_mode)) return errno_text(EISDIR);
  const std::string beside = path + ".new";
  const UniqueFd fd = open_beside(beside);
  if (!fd.valid()) return errno_text(errno);
  (void)::unlink(beside.c_str());
  return {};
}

NatStateResult save_nat(const std::string& path, const std::string& boot,
                        const steer::Forwarder& forwarder, std::uint32_t now_s) {
  const std::string beside = path + ".new";
  const auto failed = [&](int error) {
    (void)::unlink(beside.c_str());
    return NatStateResult{errno_text(error), 0, 0};
  };
  UniqueFd fd = open_beside(beside);
  if (!fd.valid()) return {errno_text(errno), 0, 0};
  File file(::fdopen(fd.get(), "wb"));
  if (!file) return failed(errno);
  (void)fd.release();  // the file's now
  if (!write_all(file.get(), boot, forwarder, now_s)) return failed(errno);
  if (std::fclose(file.release()) != 0) return failed(errno);
  if (std::rename(beside.c_str(), path.c_str()) != 0) return failed(errno);
  return {"", forwarder.nat().sessions(), 0};
}

NatStateResult load_nat(const std::string& path, const std::string& boot,
                        steer::Forwarder& forwarder, std::uint32_t now_s) {
  NatStateResult out;
  const int fd = ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) {
    if (errno != ENOENT) out.wrong = errno_text(errno);
    return out;
  }
  File file(::fdopen(fd, "rb"));
  if (!file) {
    out.wrong = errno_text(errno);
    ::close(fd);
    return out;
  }
  (void)::unlink(path.c_str());
  out.wrong = read_all(file.get(), boot, forwarder, now_s, nullptr);
  if (out.wrong.empty()) out.wrong = read_all(file.get(), boot, forwarder, now_s, &out);
  return out;
}

}  // namespace sanproxy::netnode

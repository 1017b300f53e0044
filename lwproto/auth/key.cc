#include "lwproto/auth/key.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "lwproto/wire/codec.h"

namespace sanproxy::auth {
namespace {

// Closes on every way out.
struct File {
  int fd = -1;
  ~File() {
    if (fd >= 0) close(fd);
  }
};

std::size_t without_line_end(std::span<const std::byte> bytes) {
  std::size_t size = bytes.size();
  while (size > 0 && (bytes[size - 1] == std::byte{'\n'} || bytes[size - 1] == std::byte{'\r'})) {
    --size;
  }
  return size;
}

}  // namespace

Result<Key> Key::create(std::string_view name, std::span<const std::byte> secret) {
  if (!wire::key_name_legal(name)) {
    return Status::error(Code::kInvalidArgument,
                         "a key's name is 1 to 32 letters, digits, dots, '_' and '-'");
  }
  if (secret.size() < kSecretBytesMin) {
    return Status::error(Code::kInvalidArgument, "a key needs at least 16 bytes");
  }
  if (secret.size() > kSecretBytesMax) {
    return Status::error(Code::kInvalidArgument, "a key has at most 4096 bytes");
  }
  return Key(name, secret);
}

Result<Key> Key::from_file(std::string_view name, const std::string& path) {
  // O_NONBLOCK: a FIFO must not hold us up before it is refused.
  const File file{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  struct stat info {};
  if (file.fd < 0 || fstat(file.fd, &info) != 0) {
    return Status::error(Code::kSystem, "the key file cannot be opened", errno);
  }
  if (!S_ISREG(info.st_mode)) {
    return Status::error(Code::kInvalidArgument, "the key file is not a regular file");
  }
  if ((info.st_mode & (S_IROTH | S_IWOTH)) != 0) {
    return Status::error(Code::kPermission,
                         "the key file is open to everybody (chmod o-rw would mend that)");
  }
  std::array<std::byte, kSecretBytesMax + 3> bytes{};  // room to see that it is too long
  std::size_t size = 0;
  while (size < bytes.size()) {
    const ssize_t got = read(file.fd, bytes.data() + size, bytes.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Status::error(Code::kSystem, "the key file cannot be read", errno);
    if (got == 0) break;
    size += static_cast<std::size_t>(got);
  }
  auto key = create(name, std::span(bytes).first(without_line_end(std::span(bytes).first(size))));
  OPENSSL_cleanse(bytes.data(), bytes.size());
  return key;
}

Key::~Key() {
  if (!secret_.empty()) OPENSSL_cleanse(secret_.data(), secret_.size());
}

}  // namespace sanproxy::auth

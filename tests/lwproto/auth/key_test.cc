#include "lwproto/auth/key.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>

namespace sanproxy::auth {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string text_of(const Key& key) {
  return {reinterpret_cast<const char*>(key.secret().data()), key.secret().size()};
}

class KeyFile : public ::testing::Test {
 protected:
  KeyFile() {
    std::string name = "/tmp/sanproxy-key-XXXXXX";
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
    path_ = directory_ + "/web.key";
  }
  ~KeyFile() override { std::filesystem::remove_all(directory_); }
  void write(const std::string& text, mode_t mode = 0600) {
    std::ofstream(path_) << text;
    EXPECT_EQ(::chmod(path_.c_str(), mode), 0);
  }
  Status status() const { return Key::from_file("web", path_).status(); }

  std::string directory_, path_;
};

TEST(Key, HasANameThatMayTravelAndEnoughBytes) {
  const auto secret = bytes_of("0123456789abcdef");
  const auto key = Key::create("web-1.key_A", secret);
  ASSERT_TRUE(key.ok()) << key.status().to_string();
  EXPECT_EQ(key->name(), "web-1.key_A");
  EXPECT_EQ(text_of(*key), "0123456789abcdef");
  for (const std::string& name :
       {std::string(), std::string("a b"), std::string("a/b"), std::string("a\0b", 3),
        std::string(33, 'a'), std::string("k\xc3\xa4se")}) {
    EXPECT_EQ(Key::create(name, secret).status().code(), Code::kInvalidArgument) << name;
  }
  EXPECT_EQ(Key::create("web", secret.first(15)).status().code(), Code::kInvalidArgument);
  const std::string longest(Key::kSecretBytesMax, 'x');
  EXPECT_TRUE(Key::create("web", bytes_of(longest)).ok());
  EXPECT_EQ(Key::create("web", bytes_of(longest + "x")).status().code(), Code::kInvalidArgument);
}

TEST_F(KeyFile, IsTheSecretWithoutItsLineEnd) {
  for (const char* end : {"", "\n", "\r\n", "\n\n"}) {
    write(std::string("a secret, of 24 bytes  \t") + end);
    const auto key = Key::from_file("web", path_);
    ASSERT_TRUE(key.ok()) << key.status().to_string();
    EXPECT_EQ(text_of(*key), "a secret, of 24 bytes  \t");
  }
  write(std::string("binary\0with\nline ends", 21));
  EXPECT_EQ(text_of(*Key::from_file("web", path_)), std::string("binary\0with\nline ends", 21));
}

TEST_F(KeyFile, IsRefusedWhenEverybodyMayReadOrWriteIt) {
  for (const mode_t mode : {0644, 0604, 0602, 0666}) {
    write("0123456789abcdef", mode);
    EXPECT_EQ(status().code(), Code::kPermission) << std::oct << mode;
  }
  for (const mode_t mode : {0600, 0400, 0640, 0660}) {
    write("0123456789abcdef", mode);
    EXPECT_TRUE(status().ok()) << std::oct << mode;
  }
}

TEST_F(KeyFile, IsRefusedWhenTooShortOrTooLong) {
  write("0123456789abcde\n");
  EXPECT_EQ(status().code(), Code::kInvalidArgument);
  write(std::string(Key::kSecretBytesMax, 'x').append("\r\n"));
  EXPECT_TRUE(status().ok());
  write(std::string(Key::kSecretBytesMax + 1, 'x'));
  EXPECT_EQ(status().code(), Code::kInvalidArgument);
  write(std::string(1 << 20, 'x'));
  EXPECT_EQ(status().code(), Code::kInvalidArgument);
}

TEST_F(KeyFile, IsRefusedWhenItIsNoFileAndSaysWhyItCannotBeOpened) {
  EXPECT_EQ(status().code(), Code::kSystem);
  EXPECT_EQ(status().sys_errno(), ENOENT);
  EXPECT_EQ(Key::from_file("web", directory_).status().code(), Code::kInvalidArgument);
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  EXPECT_EQ(status().code(), Code::kInvalidArgument);  // and it does not wait for a writer
}

}  // namespace
}  // namespace sanproxy::auth

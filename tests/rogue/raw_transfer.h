// RawTransfer: a transfer put together without any check, to break the rules one at a time.
//
// Role: what wire::TransferWriter refuses to write. Builds correct bytes by default; every field
//   can then be made wrong.
// Thread: values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <vector>

#include "lwproto/wire/format.h"

namespace sanproxy::rogue {

class RawTransfer {
 public:
  RawTransfer() {
    bytes_.reserve(4096);
    bytes_.resize(sizeof(wire::TransferHeader));
  }

  // Appends a message; `length` 0 means the right one.
  template <typename Body>
  RawTransfer& add(wire::MessageType type, const Body& body, std::uint8_t flags = 0,
                   wire::CloseCode code = wire::CloseCode::kNone, std::size_t tail_bytes = 0,
                   std::uint32_t length = 0) {
    const std::size_t at = bytes_.size();
    const std::size_t whole = sizeof(wire::MessageHeader) + sizeof(body) + tail_bytes;
    const wire::MessageHeader header{static_cast<std::uint8_t>(type), flags,
                                     static_cast<std::uint16_t>(code),
                                     length != 0 ? length : static_cast<std::uint32_t>(whole)};
    bytes_.resize(at + (whole + 7) / 8 * 8);
    std::memcpy(bytes_.data() + at, &header, sizeof(header));
    std::memcpy(bytes_.data() + at + sizeof(header), &body, sizeof(body));
    for (std::size_t i = 0; i < tail_bytes; ++i) {
      bytes_[at + sizeof(header) + sizeof(body) + i] = std::byte{'x'};
    }
    ++count_;
    return *this;
  }

  // The header of a DATA whose payload comes behind the inline part.
  RawTransfer& add_data_header(std::uint64_t connection, std::uint64_t offset,
                               std::uint32_t payload_bytes) {
    add(wire::MessageType::kData, wire::DataBody{connection, offset}, 0, wire::CloseCode::kNone, 0,
        static_cast<std::uint32_t>(wire::kDataHeaderBytes) + payload_bytes);
    return *this;
  }

  RawTransfer& add_bytes(std::size_t count, std::byte value) {
    bytes_.resize(bytes_.size() + count, value);
    return *this;
  }

  // Changes the header after it was filled in.
  RawTransfer& with_header(std::function<void(wire::TransferHeader&)> change) {
    change_ = std::move(change);
    return *this;
  }

  std::byte& at(std::size_t index) { return bytes_[index]; }
  // The first message's header starts here.
  static constexpr std::size_t kFirst = sizeof(wire::TransferHeader);
  std::size_t size() const { return bytes_.size(); }
  void cut(std::size_t bytes) { bytes_.resize(bytes); }

  std::span<const std::byte> finish(std::uint32_t credits_granted) {
    wire::TransferHeader header{credits_granted, count_, 0};
    if (change_) change_(header);
    std::memcpy(bytes_.data(), &header, std::min(sizeof(header), bytes_.size()));
    return bytes_;
  }

 private:
  std::vector<std::byte> bytes_;
  std::function<void(wire::TransferHeader&)> change_;
  std::uint16_t count_ = 0;
};

}  // namespace sanproxy::rogue

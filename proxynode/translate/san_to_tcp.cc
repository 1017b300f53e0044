// Application bytes on their way to the client.
#include <algorithm>
#include <array>
#include <cstring>

#include "lwproto/base/check.h"
#include "proxynode/translate/translator.h"

namespace sanproxy::translate {

Stream* Translator::stream_for(AppNode& node, std::uint64_t connection, StreamIndex& index) {
  index = wire::connection_index(connection);
  if (index >= streams_.capacity()) {
    node.channel->close(wire::CloseCode::kNotFound, "unknown connection");
    return nullptr;
  }
  Stream& s = streams_[index];
  const bool known = s.state == StreamState::kRequested || s.state == StreamState::kOpen;
  if (s.id == connection && known && s.node == node.index) return &s;
  // An id that was issued before and has ended: the message crossed our CLOSE (rule S2).
  const auto generation =
      static_cast<std::uint32_t>(connection >> wire::kConnectionIndexBits) & 0xff'ffffu;
  // Once an index has gone through all 2^24 generations, each of them was issued.
  const bool reached = generation <= s.generation || s.generation > 0xff'ffffu;
  const bool issued = (connection >> 48) == options_.epoch && generation != 0 && reached;
  const bool alive = s.id == connection && s.state != StreamState::kOrphan;
  if (issued && !alive) {
    ++counters_.late_messages;
    return nullptr;
  }
  node.channel->close(wire::CloseCode::kNotFound, "unknown connection");
  return nullptr;
}

void Translator::on_data(channel::Channel& channel, std::uint64_t connection, std::uint64_t offset,
                         const channel::Payload& payload) {
  AppNode& node = node_of_channel(channel);
  if (is_probe(connection)) return on_probe_data(node, connection, offset, payload);
  StreamIndex index = kNone;
  Stream* s = stream_for(node, connection, index);
  if (s == nullptr) return;
  if (s->state != StreamState::kOpen || s->has(kAppFin) ||
      !s->from_app.on_data(offset, payload.length).ok()) {
    return fail_stream(*s, index, wire::CloseCode::kProtocolError);
  }
  counters_.bytes_from_apps += payload.length;
  const bool taken = payload.loan == fabric::kNoLoan
                         ? write_small(*s, index, payload)
                         : write_referenced(*s, index, channel, payload);
  if (!taken) {
    ++counters_.closed_no_memory;
    fail_stream(*s, index, wire::CloseCode::kLimitReached);
  }
}

// Bytes that are gone when we return: the stack copies them; if it has no memory, the EgressPool
// holds them until it has.
bool Translator::write_small(Stream& s, StreamIndex index, const channel::Payload& payload) {
  std::uint64_t end = s.from_app.received() - payload.length;
  for (const fabric::Segment& piece : payload.pieces) {
    const std::span<const std::byte> bytes{piece.data, piece.length};
    end += bytes.size();
    if (s.tx_unwritten == kNone && may_write(s)) {
      const Status status = stack_->write(index, bytes, stack::WriteMode::kCopy);
      if (status.ok()) {
        s.copied_bytes += static_cast<std::uint32_t>(bytes.size());
        counters_.copied_inline += bytes.size();
        continue;
      }
      if (!status.is_again()) return true;  // the sending side is shut: the end is on its way
    }
    if (!keep_small(s, bytes, end)) return false;
    ++counters_.held_writes;
    starve(s, index);
  }
  return true;
}

// Packs the bytes into the stream's last EgressPool slot, or into a new one.
bool Translator::keep_small(Stream& s, std::span<const std::byte> bytes, std::uint64_t end_offset) {
  counters_.copied_pressure += bytes.size();
  if (s.tx_unwritten != kNone) {  // then the last record is not written either
    TxRecord& last = records_[s.tx_last];
    const bool room = last.egress != buffer::kNoSlot &&
                      slot_bytes_used(last) + bytes.size() <= egress_.slot_bytes();
    if (room) {
      std::memcpy(egress_.data(last.egress) + slot_bytes_used(last), bytes.data(), bytes.size());
      last.length += static_cast<std::uint32_t>(bytes.size());
      last.end_offset = end_offset;
      return true;
    }
  }
  const buffer::SlotIndex slot = egress_.acquire();
  if (slot == buffer::kNoSlot) return false;
  egress_.mark_received(slot);
  std::memcpy(egress_.data(slot), bytes.data(), bytes.size());
  if (add_record(s, {egress_.data(slot), bytes.size()}, end_offset, fabric::kNoLoan, slot)) {
    ++s.egress_slots;
    return true;
  }
  egress_.release(slot);
  return false;
}

// Copies as many of the first bytes into the stack as it has memory for. Returns how many need
// nothing more: all of them if the connection has ended meanwhile. In steps that the stack takes
// whole or not at all: what it cannot finish it resets.
std::size_t Translator::copy_prefix(Stream& s, StreamIndex index, const channel::Payload& payload) {
  constexpr std::size_t kStepBytes = 16 * 1024;
  std::size_t copied = 0;
  for (const fabric::Segment& piece : payload.pieces) {
    for (std::size_t done = 0; done < piece.length;) {
      const std::size_t step = std::min<std::size_t>(piece.length - done, kStepBytes);
      if (s.tx_unwritten != kNone) return copied;
      const Status status =
          stack_->write(index, {piece.data + done, step}, stack::WriteMode::kCopy);
      if (!status.ok()) return status.is_again() ? copied : payload.length;
      s.copied_bytes += static_cast<std::uint32_t>(step);
      counters_.copied_pressure += step;
      done += step;
      copied += step;
    }
  }
  return copied;
}

// Bytes on loan: the stack refers to them until the client has acknowledged them.
bool Translator::write_referenced(Stream& s, StreamIndex index, channel::Channel& channel,
                                  const channel::Payload& payload) {
  const AppNode& node = node_of_channel(channel);
  if (is_better_packed(s, node, payload) && pack(s, payload)) {
    write_records(s, index);
    return true;
  }
  const bool copy = node.receives_into_egress && is_better_copied();
  std::size_t skipped = copy ? copy_prefix(s, index, payload) : 0;
  if (skipped == payload.length) return true;
  std::uint64_t end = s.from_app.received() - payload.length;
  for (std::size_t i = 0; i < payload.pieces.size(); ++i) {
    const fabric::Segment& piece = payload.pieces[i];
    end += piece.length;
    const std::size_t skip = std::min<std::size_t>(skipped, piece.length);
    skipped -= skip;
    if (skip == piece.length) continue;
    const bool last = i + 1 == payload.pieces.size();
    if (!add_record(s, {piece.data + skip, piece.length - skip}, end,
                    last ? payload.loan : fabric::kNoLoan, buffer::kNoSlot)) {
      return false;
    }
  }
  channel.retain(payload.loan);
  if (node.receives_into_egress) ++s.egress_slots;
  write_records(s, index);
  return true;
}

bool Translator::add_record(Stream& s, std::span<const std::byte> bytes, std::uint64_t end_offset,
                            fabric::Loan loan, buffer::SlotIndex egress) {
  // Nobody takes more than half of them from the others.
  AppNode& node = *nodes_[s.node];
  if (present_.size() > 1 && node.records >= records_.capacity() / 2) return false;
  RecordIndex r = records_free_;
  if (r != kNone) {
    records_free_ = records_[r].next;
  } else if (records_touched_ < records_.capacity()) {
    r = records_touched_++;
  } else {
    return false;
  }
  ++records_used_;
  ++node.records;
  records_[r] = {end_offset, bytes.data(), static_cast<std::uint32_t>(bytes.size()),
                 kNone,      loan,         egress};
  if (s.tx_last == kNone) {
    s.tx_first = r;
  } else {
    records_[s.tx_last].next = r;
  }
  s.tx_last = r;
  if (s.tx_unwritten == kNone) s.tx_unwritten = r;
  return true;
}

void Translator::write_records(Stream& s, StreamIndex index) {
  while (s.tx_unwritten != kNone) {
    const TxRecord& record = records_[s.tx_unwritten];
    if (!may_write(s)) {
      ++counters_.held_writes;
      return starve(s, index);
    }
    const Status status =
        stack_->write(index, {record.data, record.length}, stack::WriteMode::kReference);
    if (status.is_again()) return starve(s, index);
    if (!status.ok()) return;  // shut: on_closed() will release the records
    s.tx_unwritten = record.next;
  }
  finish_sending(s, index);
}

void Translator::release_records(Stream& s, AppNode& node, std::uint64_t up_to) {
  while (s.tx_first != kNone && s.tx_first != s.tx_unwritten &&
         records_[s.tx_first].end_offset <= up_to) {
    const RecordIndex r = s.tx_first;
    const TxRecord& record = records_[r];
    if (record.egress != buffer::kNoSlot ||
        (node.receives_into_egress && record.loan != fabric::kNoLoan)) {
      --s.egress_slots;
    }
    s.tx_first = record.next;
    const bool holds = record.loan != fabric::kNoLoan || record.egress != buffer::kNoSlot;
    if (holds && options_.lent != nullptr && !options_.lent->all_done()) {
      give_back_later(r, node);
    } else {
      give_back(r, node);
    }
  }
  if (s.tx_first == kNone) s.tx_last = kNone;
}

void Translator::give_back(RecordIndex r, AppNode& node) {
  TxRecord& record = records_[r];
  if (record.loan != fabric::kNoLoan) node.channel->release(record.loan);
  if (record.egress != buffer::kNoSlot) egress_.release(record.egress);
  if (record.egress != buffer::kNoSlot ||
      (node.receives_into_egress && record.loan != fabric::kNoLoan)) {
    slots_released_ = true;
  }
  record.next = records_free_;
  records_free_ = r;
  --records_used_;
  --node.records;
}

// A network node may still read what the client has acknowledged: a packet that was sent again, or
// one of a connection that is gone. The record outlives its stream, so it says whose it is.
void Translator::give_back_later(RecordIndex r, AppNode& node) {
  TxRecord& record = records_[r];
  record.end_offset = options_.lent->mark();
  record.length = node.index;
  record.next = kNone;
  if (returns_last_ == kNone) {
    returns_first_ = r;
  } else {
    records_[returns_last_].next = r;
  }
  returns_last_ = r;
  ++node.returns_due;
  ++counters_.returned_late;
}

void Translator::give_back_returns() {
  while (returns_first_ != kNone && options_.lent->is_done(records_[returns_first_].end_offset)) {
    const RecordIndex r = returns_first_;
    returns_first_ = records_[r].next;
    AppNode& node = *nodes_[records_[r].length];
    --node.returns_due;
    give_back(r, node);
  }
  if (returns_first_ == kNone) returns_last_ = kNone;
}

void Translator::on_acked(stack::ConnIndex conn, std::uint64_t acked_offset) {
  Stream& s = streams_[conn];
  if (s.node == kNone || acked_offset <= s.from_app.freed()) return;
  // Not beyond what was received: our own FIN has no place in the stream's offsets.
  const std::uint64_t acked = std::min(acked_offset, s.from_app.received());
  const std::uint64_t news = acked - s.from_app.freed();
  s.from_app.on_freed(static_cast<std::uint32_t>(news));
  s.clear(kStandsStill);
  if (s.copied_bytes != 0) {  // of copies and references in proportion, about
    const std::uint64_t left = in_stack(s);
    s.copied_bytes =
        left == 0 ? 0 : static_cast<std::uint32_t>(s.copied_bytes * left / (left + news));
  }
  if (s.tx_first != kNone) {
    release_records(s, *nodes_[s.node], acked);
    if (s.tx_unwritten != kNone) write_records(s, conn);
  }
  if (s.state == StreamState::kOpen && s.from_app.credit_due() && !s.has(kCreditPending)) {
    s.set(kCreditPending);
    mark_dirty(s, conn);
  }
}

Status Translator::send_credit(Stream& s, AppNode& node) {
  // What the client has acknowledged is what we have freed: until then it may be sent again.
  const wire::CreditBody body{s.id, s.from_app.freed(), s.from_app.freed()};
  const Status status = node.channel->send_credit(body);
  if (status.ok()) {
    (void)s.from_app.announce();
    s.clear(kCreditPending);
  }
  node.credits_wait = node.credits_wait || status.is_again();
  return status;
}

void Translator::on_credit(AppNode& node, const wire::Message& message) {
  StreamIndex index = kNone;
  Stream* s = stream_for(node, message.credit.connection, index);
  if (s == nullptr) return;
  const std::uint64_t before = s->to_app.freed();
  if (message.credit.acked_offset != 0 ||
      !s->to_app.on_credit(message.credit.freed_offset, 0).ok()) {
    return fail_stream(*s, index, wire::CloseCode::kProtocolError);
  }
  stack_->consume(index, static_cast<std::uint32_t>(s->to_app.freed() - before));
  if (s->pending_bytes != 0) mark_dirty(*s, index);
}

}  // namespace sanproxy::translate

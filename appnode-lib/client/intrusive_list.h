// IntrusiveList: a queue of objects that are linked through a member of their own.
//
// Role: the lists of connections that wait for something; nothing is allocated by waiting.
// Owner: a Link or the Node. Thread: theirs.
// Invariants: an object is in a given list at most once; push_back() of a linked one does nothing.
#pragma once

#include <cstddef>

namespace sanproxy::app::internal {

template <typename T>
struct ListHook {
  T* next = nullptr;
  T* previous = nullptr;
  bool linked = false;
};

template <typename T, ListHook<T> T::*kHook>
class IntrusiveList {
 public:
  bool empty() const { return head_ == nullptr; }
  std::size_t size() const { return size_; }

  void push_back(T& object) {
    ListHook<T>& hook = object.*kHook;
    if (hook.linked) return;
    hook = {nullptr, tail_, true};
    if (tail_ != nullptr) {
      (tail_->*kHook).next = &object;
    } else {
      head_ = &object;
    }
    tail_ = &object;
    ++size_;
  }

  T* pop_front() {
    T* object = head_;
    if (object != nullptr) remove(*object);
    return object;
  }

  void remove(T& object) {
    ListHook<T>& hook = object.*kHook;
    if (!hook.linked) return;
    if (hook.previous != nullptr) {
      (hook.previous->*kHook).next = hook.next;
    } else {
      head_ = hook.next;
    }
    if (hook.next != nullptr) {
      (hook.next->*kHook).previous = hook.previous;
    } else {
      tail_ = hook.previous;
    }
    hook = {};
    --size_;
  }

 private:
  T* head_ = nullptr;
  T* tail_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace sanproxy::app::internal

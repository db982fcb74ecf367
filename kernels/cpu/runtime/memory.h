// Aligned memory: a buffer that only grows, an arena that hands out KV storage and takes it back as a stack, and huge
// pages for weights.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace aegis {

inline constexpr size_t kAlignment = 64;  // a cache line, and a zmm register

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};
using AlignedBytes = std::unique_ptr<std::byte, FreeDeleter>;

inline AlignedBytes aligned_bytes(size_t bytes, size_t alignment = kAlignment) {
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* p = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded);
  if (p == nullptr) throw std::bad_alloc();
  return AlignedBytes(static_cast<std::byte*>(p));
}

// Uninitialised elements; reserve() keeps the memory of earlier, larger calls: a warm check allocates nothing.
template <class T>
class Buffer {
 public:
  void reserve(size_t n) {
    if (n <= capacity_) return;
    const size_t grown = n > capacity_ + capacity_ / 2 ? n : capacity_ + capacity_ / 2;
    bytes_.reset();  // contents are scratch: freed first, so that the peak is one copy
    capacity_ = 0;
    bytes_ = aligned_bytes(grown * sizeof(T));
    capacity_ = grown;
  }
  T* data() { return reinterpret_cast<T*>(bytes_.get()); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.get()); }
  size_t capacity() const { return capacity_; }

 private:
  AlignedBytes bytes_;
  size_t capacity_ = 0;
};

// Memory from blocks of huge pages, where the system has them, all given back with the object. A pass reads all
// weights, and what a TLB holds of 4 KB pages is a tenth of a small model. What is not used of a block is never
// touched. Safe to use from several threads: layers are packed side by side.
class HugePages {
 public:
  std::byte* allocate(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (bytes > left_) {
      constexpr size_t kPage = size_t{2} << 20, kBlock = size_t{32} << 20;
      const size_t size = ((bytes > kBlock ? bytes : kBlock) + kPage - 1) / kPage * kPage;
      blocks_.push_back(aligned_bytes(size, kPage));
      next_ = blocks_.back().get();
      left_ = size;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
      static_cast<void>(madvise(next_, size, MADV_HUGEPAGE));  // a wish: small pages hold the same bytes
#endif
    }
    std::byte* p = next_;
    next_ += bytes;
    left_ -= bytes;
    return p;
  }

 private:
  std::mutex mutex_;
  std::vector<AlignedBytes> blocks_;
  std::byte* next_ = nullptr;
  size_t left_ = 0;
};

// A stack of allocations in chunks that never move. Not thread-safe.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  struct Mark {
    size_t chunk = 0, used = 0;
  };

  std::byte* allocate(size_t bytes) {
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    while (top_.chunk < chunks_.size() && chunks_[top_.chunk].second - top_.used < bytes) {
      ++top_.chunk;
      top_.used = 0;
    }
    if (top_.chunk == chunks_.size()) {
      constexpr size_t kChunk = size_t{4} << 20;  // about 180 tokens of a 135M model
      const size_t size = bytes > kChunk ? bytes : kChunk;
      chunks_.emplace_back(aligned_bytes(size), size);
      top_.used = 0;
    }
    std::byte* p = chunks_[top_.chunk].first.get() + top_.used;
    top_.used += bytes;
    return p;
  }
  Mark mark() const { return top_; }
  void rewind(Mark mark) { top_ = mark; }

 private:
  std::vector<std::pair<AlignedBytes, size_t>> chunks_;
  Mark top_;
};

}  // namespace aegis

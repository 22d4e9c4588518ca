// Memory for large results. malloc gives a large block back to the system when its tensor goes, and
// the next one costs a page fault for every 4 KiB, as much time as a layer of neurons takes or
// more. Here blocks stay, up to a number of bytes, for the results that come.
#pragma once

#include <pthread.h>

#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace snnfast {

class ResultMemory {
 public:
  struct Block {
    void* p = nullptr;
    size_t bytes = 0;
  };

  // The one of the process; never destroyed, for tensors may outlive all else.
  static ResultMemory& own() {
    static ResultMemory* const memory = new ResultMemory;
    return *memory;
  }
  // The smallest kept block that fits and of which at most an eighth is left over, or a new one;
  // null where it is beyond the limit, or there is no memory.
  Block take(size_t bytes) {
    bytes = (bytes + kPage - 1) / kPage * kPage;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (bytes > limit_) return {};
    size_t best = kept_.size();
    for (size_t k = kept_.size(); k-- > 0;)
      if (kept_[k].bytes >= bytes && kept_[k].bytes - bytes <= bytes / 8 &&
          (best == kept_.size() || kept_[k].bytes < kept_[best].bytes))
        best = k;
    if (best < kept_.size()) {
      const Block block = kept_[best];
      kept_.erase(kept_.begin() + ptrdiff_t(best));
      held_ -= block.bytes;
      return block;
    }
    void* p = std::aligned_alloc(kPage, bytes);
    if (!p) {
      shrink(0);
      p = std::aligned_alloc(kPage, bytes);
    }
    return {p, p ? bytes : 0};
  }
  // Keeps a block, and frees those that were kept longest beyond the limit.
  void give(Block block) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      kept_.push_back(block);
    } catch (const std::bad_alloc&) {
      std::free(block.p);
      return;
    }
    held_ += block.bytes;
    shrink(limit_);
  }
  // Sets how many bytes may be kept; returns how many might be before.
  size_t set_limit(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t before = limit_;
    limit_ = bytes;
    shrink(limit_);
    return before;
  }

 private:
  ResultMemory() {
    // A child that is forked while another thread holds the lock must find it open.
    pthread_atfork([] { own().mutex_.lock(); }, [] { own().mutex_.unlock(); },
                   [] { own().mutex_.unlock(); });
  }
  void shrink(size_t most) {
    size_t gone = 0;
    while (held_ > most) {
      std::free(kept_[gone].p);
      held_ -= kept_[gone++].bytes;
    }
    kept_.erase(kept_.begin(), kept_.begin() + ptrdiff_t(gone));
  }

  static constexpr size_t kPage = 4096;
  std::mutex mutex_;
  std::vector<Block> kept_;  // the one that was given last is the last
  size_t held_ = 0, limit_ = size_t(512) << 20;
};

}  // namespace snnfast

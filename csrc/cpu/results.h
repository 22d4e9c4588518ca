// Memory for large results. malloc gives a large block back to the system when its tensor goes, and
// the next one costs a page fault for every 4 KiB, as much time as a layer of neurons takes or
// more. Here blocks stay, up to a number of bytes, for the results that come.
#pragma once

#include <pthread.h>

#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>
#include <optional>
#include <vector>

namespace snnfast {

class ResultMemory {
 public:
  struct Block {
    void* p;
    size_t bytes;
  };

  // The one of the process; never destroyed, for tensors may outlive all else.
  static ResultMemory& own() {
    static ResultMemory* const memory = new ResultMemory;
    return *memory;
  }
  // The smallest kept block that fits and of which at most an eighth is left over, or a new one;
  // none where so many bytes would not be kept afterwards.
  std::optional<Block> take(size_t bytes) {
    {
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
    }
    bytes = (bytes + kPage - 1) / kPage * kPage;
    void* const p = std::aligned_alloc(kPage, bytes);
    if (!p) throw std::bad_alloc();
    return Block{p, bytes};
  }
  // Keeps a block, and frees those that were kept longest beyond the limit.
  void give(Block block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_.push_back(block);
    held_ += block.bytes;
    shrink();
  }
  // Bytes that may be kept; returns what it was.
  size_t limit(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t before = limit_;
    limit_ = bytes;
    shrink();
    return before;
  }

 private:
  ResultMemory() {
    // A child that is forked while another thread holds the lock must find it open.
    pthread_atfork([] { own().mutex_.lock(); }, [] { own().mutex_.unlock(); },
                   [] { own().mutex_.unlock(); });
  }
  void shrink() {
    size_t gone = 0;
    for (; held_ > limit_; ++gone) std::free(kept_[gone].p), held_ -= kept_[gone].bytes;
    kept_.erase(kept_.begin(), kept_.begin() + ptrdiff_t(gone));
  }

  static constexpr size_t kPage = 4096;
  std::mutex mutex_;
  std::vector<Block> kept_;  // the one that was given last is the last
  size_t held_ = 0, limit_ = size_t(512) << 20;
};

}  // namespace snnfast

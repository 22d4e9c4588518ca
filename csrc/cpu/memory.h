// Memory of a thread that stays with it from call to call.
#pragma once

#include <cstdlib>

#include "platform.h"

namespace snnfast {
inline namespace SNN_ISA {

// Memory of one thread for one call, 64-byte aligned. A thread keeps what it used last, up to a
// size: the system's malloc would map and fault it anew for every call.
class Memory {
 public:
  void* take(size_t bytes) {
    Kept& kept = own();
    if (bytes > kept.bytes) {
      std::free(kept.p);
      kept.p = std::aligned_alloc(64, bytes);
      if (!kept.p) std::abort();  // an exception must not leave a parallel region
      kept.bytes = bytes;
    }
    return kept.p;
  }
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    Kept& kept = own();
    if (kept.bytes > kKeep) std::free(kept.p), kept = {};
  }

 private:
  static constexpr size_t kKeep = size_t(4) << 20;
  struct Kept {
    void* p = nullptr;
    size_t bytes = 0;
    ~Kept() { std::free(p); }
  };
  static Kept& own() {
    static thread_local Kept kept;
    return kept;
  }
};

}  // namespace SNN_ISA
}  // namespace snnfast

// Results lie in memory that the allocator has just mapped, and there each 4 KiB costs a page fault
// at the first write: on a virtual machine more time than a kernel takes for all of it.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace snnfast {

// Asks for pages of 2 MiB for the whole ones of them within a result of n elements, which a system
// may have for who asks. Pages that are there already stay as they are.
static inline void fresh(void* result, int64_t n, int itemsize) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t at = reinterpret_cast<uintptr_t>(result);
  const uintptr_t begin = (at + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = (at + uintptr_t(n * itemsize)) & ~(kPage - 1);
  if (result && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)result, (void)n, (void)itemsize;
#endif
}

}  // namespace snnfast

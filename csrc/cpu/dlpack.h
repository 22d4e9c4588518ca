// A result as PyTorch takes it over: a capsule as in DLPack's ABI (dlpack.h, version 0.8).
#pragma once

#include <cstring>
#include <utility>
#include <vector>

#include "args.h"
#include "bindings.h"
#include "results.h"

namespace snnfast {

struct DlTensor {
  void* data;
  struct {
    int32_t type, index;
  } device;
  int32_t axes;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t *shape, *strides;
  uint64_t offset;
};
struct DlManaged {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManaged*);
};

struct LentResult {
  DlManaged managed;
  ResultMemory::Block block;
  std::vector<int64_t> sizes, strides;
  ~LentResult() { ResultMemory::own().give(block); }
};

// An uninitialised tensor [sizes], row-major without strides; None where it is too large to be
// kept.
inline py::object new_result(int dtype, std::vector<int64_t> sizes, std::vector<int64_t> strides) {
  size_t count = 1;
  for (const int64_t size : sizes) count *= size_t(size);
  const uint8_t bits = dtype == kFloat64 ? 64 : dtype == kFloat32 ? 32 : 16;
  const uint8_t code = dtype == kBFloat16 ? 4 : 2;  // kDLBfloat, kDLFloat
  const auto block = ResultMemory::own().take(count * bits / 8);
  if (!block) return py::none();
  auto* const result = new LentResult{{}, *block, std::move(sizes), std::move(strides)};
  const int32_t axes = int32_t(result->sizes.size());
  result->managed = {{result->block.p,
                      {1, 0},
                      axes,
                      {code, bits, 1},
                      result->sizes.data(),
                      result->strides.empty() ? nullptr : result->strides.data(),
                      0},
                     result,
                     [](DlManaged* m) { delete static_cast<LentResult*>(m->context); }};
  return py::capsule(&result->managed, "dltensor", [](PyObject* capsule) {
    // Whoever takes the tensor over gives the capsule another name.
    if (void* const p = PyCapsule_IsValid(capsule, "dltensor")
                            ? PyCapsule_GetPointer(capsule, "dltensor")
                            : nullptr)
      static_cast<DlManaged*>(p)->deleter(static_cast<DlManaged*>(p));
  });
}

}  // namespace snnfast

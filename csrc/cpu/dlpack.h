// A result as PyTorch takes it over: a capsule as in DLPack's ABI (dlpack.h, version 0.8).
#pragma once

#include <memory>
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
  std::vector<int64_t> sizes, strides;
  ResultMemory::Block block;
  DlManaged managed;
  ~LentResult() {
    if (block.p) ResultMemory::own().give(block);
  }
};

// An uninitialised tensor [sizes], row-major without strides; None where its memory is not kept.
inline py::object new_result(int dtype, std::vector<int64_t> sizes, std::vector<int64_t> strides) {
  const uint8_t bits = dtype == kFloat64 ? 64 : dtype == kFloat32 ? 32 : 16;
  const uint8_t code = dtype == kBFloat16 ? 4 : 2;  // kDLBfloat, kDLFloat
  size_t bytes = bits / 8;
  for (const int64_t size : sizes)
    if (__builtin_mul_overflow(bytes, size_t(size), &bytes)) return py::none();
  auto result =
      std::make_unique<LentResult>(LentResult{std::move(sizes), std::move(strides), {}, {}});
  result->block = ResultMemory::own().take(bytes);
  if (!result->block.p) return py::none();
  result->managed = {{result->block.p,
                      {1, 0},
                      int32_t(result->sizes.size()),
                      {code, bits, 1},
                      result->sizes.data(),
                      result->strides.empty() ? nullptr : result->strides.data(),
                      0},
                     result.get(),
                     [](DlManaged* m) { delete static_cast<LentResult*>(m->context); }};
  py::capsule capsule(&result->managed, "dltensor", [](PyObject* self) {
    // Whoever takes the tensor over gives the capsule another name.
    if (!PyCapsule_IsValid(self, "dltensor")) return;
    const auto managed = static_cast<DlManaged*>(PyCapsule_GetPointer(self, "dltensor"));
    managed->deleter(managed);
  });
  result.release();
  return capsule;
}

}  // namespace snnfast

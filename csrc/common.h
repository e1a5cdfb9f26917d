// What every CPU kernel needs around its loops: typed views, the thread pool, fresh memory.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cmrfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* write(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Runs body(i) for i in [0, count) on torch's own pool. What one task computes must not depend on
// which thread runs it: that is what makes results equal for every thread count.
template <class Body>
void for_each_task(int64_t count, const Body& body) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

// Asks for the cache lines `distance` bytes away from `near`; nothing is read, wherever that is.
inline void prefetch(const void* near, int64_t distance, int64_t bytes) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(near) + static_cast<uintptr_t>(distance);
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(reinterpret_cast<const void*>(at + b));
}

// A new tensor like `like` but for shape and dtype. First writes to fresh memory fault in one page
// after the other, which costs as much as the work of a large op: ask for huge pages there.
inline Tensor fresh(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape,
                    ScalarType dtype) {
  Tensor out = torch::stable::new_empty(like, shape, dtype);
#if defined(__linux__)
  constexpr uintptr_t huge_page = uintptr_t{2} << 20;
  const uintptr_t bytes = static_cast<uintptr_t>(out.numel()) * out.element_size();
  if (bytes > (uintptr_t{32} << 20)) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(out.mutable_data_ptr());
    const uintptr_t first = (begin + huge_page - 1) / huge_page * huge_page;
    madvise(reinterpret_cast<void*>(first), (begin + bytes - first) / huge_page * huge_page,
            MADV_HUGEPAGE);
  }
#endif
  return out;
}

}  // namespace cmrfast

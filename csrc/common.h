// What CPU kernels share: typed pointers, dtypes, the thread pool, new tensors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <vector>

#include "windows.h"

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

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(torch::stable::contiguous(*tensor)) : std::nullopt;
}

// Leading sizes and those of the space axes as one shape.
inline std::vector<int64_t> concat(std::initializer_list<int64_t> leading,
                                   torch::headeronly::IntHeaderOnlyArrayRef space) {
  std::vector<int64_t> shape(leading);
  shape.insert(shape.end(), space.begin(), space.end());
  return shape;
}

// The volumes that a table (V, 1 + dims) describes or, if it is empty, those of one shape.
inline Volumes volumes_of(const Tensor& table, torch::headeronly::IntHeaderOnlyArrayRef shape,
                          int64_t channels, int64_t numel) {
  const int64_t dims = table.size(1) - 1;
  if (shape.empty()) return {read<int64_t>(table), table.size(0), channels, dims, numel, {}};
  STD_TORCH_CHECK(static_cast<int64_t>(shape.size()) == dims && table.size(0) == 0,
                  "volumes have a table or one shape");
  const Box box = box_of(shape.data(), dims);
  const int64_t each = channels * box.voxels();
  return {nullptr, each > 0 ? numel / each : 0, channels, dims, numel, box};
}

// Tables, starts and indices.
inline void require_all_long(const char* op, std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* tensor : tensors) {
    STD_TORCH_CHECK(tensor->scalar_type() == ScalarType::Long, op,
                    ": tables, starts and indices must be int64");
  }
}

// Numbers of the channels of volumes, and matrices.
inline void require_all_double(const char* op, std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* tensor : tensors) {
    STD_TORCH_CHECK(tensor->scalar_type() == ScalarType::Double, op,
                    ": per-volume numbers and matrices must be float64");
  }
}

// Calls body(T{}) with T = float or double; `what` names the op and its argument.
template <class Body>
void with_real(const char* what, ScalarType dtype, const Body& body) {
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, what,
                  " must be float32 or float64");
  dtype == ScalarType::Double ? body(double{}) : body(float{});
}

// Runs body(i) for i in [0, count) on torch's thread pool. A task must compute the same whichever
// thread runs it; results are then equal for every thread count. A thread that has finished its
// share takes over tasks of the others, from the last one, so that a busy core delays no more than
// the task at hand.
template <class Body>
void for_each_task(int64_t count, const Body& body) {
  std::vector<std::atomic_flag> taken(static_cast<size_t>(count));
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (!taken[i].test_and_set(std::memory_order_relaxed)) body(i);
    }
    for (int64_t i = count - 1; i >= 0; --i) {
      if (!taken[i].test_and_set(std::memory_order_relaxed)) body(i);
    }
  });
}

// Prefetches `bytes` from `distance` bytes away from `near`; the address need not be valid.
inline void prefetch(const void* near, int64_t distance, int64_t bytes) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(near) + static_cast<uintptr_t>(distance);
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(reinterpret_cast<const void*>(at + b));
}

// A new tensor on the device of `like`. The first writes to new memory fault in one page after the
// other, which takes as long as a large op itself, so large tensors ask for huge pages.
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

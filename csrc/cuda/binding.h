// What the operators of the CUDA kernels share: the stream, dtypes, checks.
//
// Outputs and scratch come from torch's allocator, their sizes depend on shapes only, and nothing
// synchronises, so every op can be captured in a CUDA graph. Tests also compile the bindings for
// the CPU, with the kernels on fibers.
#pragma once

#ifndef CMRFAST_ON_HOST
#define USE_CUDA
#include <torch/csrc/stable/accelerator.h>
#define CMRFAST_LIBRARY cmrfast
#define CMRFAST_DEVICE CUDA
#else
#define CMRFAST_LIBRARY cmrfast_on_host
#define CMRFAST_DEVICE CPU
#endif

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <vector>

#include "../common.h"
#include "launchers.h"

namespace cmrfast::cuda {

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;
using torch::stable::contiguous;
using torch::stable::new_empty;
using torch::stable::new_zeros;

// Makes the device of a tensor current for the duration of an op, which runs on its current stream.
class OnDevice {
 public:
  explicit OnDevice([[maybe_unused]] const Tensor& tensor)
#ifndef CMRFAST_ON_HOST
      : guard_(tensor.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
  }
#else
  {
  }
#endif

  template <class Call>
  void launch(const char* op, const char* (*launcher)(const Call&, void*), const Call& call) const {
    const char* error = launcher(call, stream_);
    STD_TORCH_CHECK(error == nullptr, op, ": ", error == nullptr ? "" : error);
  }

 private:
#ifndef CMRFAST_ON_HOST
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  void* stream_ = nullptr;
};

inline Dtype dtype_of(const char* op, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Bool:
      return Dtype::kBool;
    case ScalarType::Byte:
      return Dtype::kUint8;
    case ScalarType::Char:
      return Dtype::kInt8;
    case ScalarType::Short:
      return Dtype::kInt16;
    case ScalarType::Int:
      return Dtype::kInt32;
    case ScalarType::Long:
      return Dtype::kInt64;
    case ScalarType::UInt16:
      return Dtype::kUint16;
    case ScalarType::UInt32:
      return Dtype::kUint32;
    case ScalarType::UInt64:
      return Dtype::kUint64;
    case ScalarType::Half:
      return Dtype::kFloat16;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Double:
      return Dtype::kFloat64;
    default:
      STD_TORCH_CHECK(false, op, ": no kernel for this dtype");
  }
}

// float32 or float64, which ops compute in.
inline Dtype computing_dtype(const char* op, const Tensor& tensor) {
  const Dtype dtype = dtype_of(op, tensor.scalar_type());
  STD_TORCH_CHECK(dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64, op,
                  ": values must be float32 or float64");
  return dtype;
}

// Any floating dtype; kernels upcast half precision as they read.
inline Dtype floating_dtype(const char* op, const Tensor& tensor) {
  const Dtype dtype = dtype_of(op, tensor.scalar_type());
  STD_TORCH_CHECK(dtype >= Dtype::kFloat16, op, ": values must be floating");
  return dtype;
}

// The dtype of sums: the tensor's own, or float32 for half precision.
inline ScalarType sum_dtype(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace cmrfast::cuda

// The CUDA kernels as operators: checks, outputs and scratch from torch's allocator, the stream.
//
// Sizes come from shapes alone and nothing waits for the device, so every op can be captured in a
// CUDA graph. Tests compile this file for the CPU too, with the kernels on fibers.
#ifndef CMRFAST_ON_HOST
#define USE_CUDA
#include <torch/csrc/stable/accelerator.h>
#define CMRFAST_LIBRARY cmrfast
#define CMRFAST_DEVICE CUDA
#else
#define CMRFAST_LIBRARY cmrfast_on_host
#define CMRFAST_DEVICE CPU
#endif

#include "../common.h"
#include "launchers.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <tuple>
#include <vector>

namespace cmrfast::cuda {
namespace {

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;
using torch::stable::contiguous;
using torch::stable::new_empty;
using torch::stable::new_zeros;

// The device of a tensor and its current stream, for the time of one op.
class Here {
 public:
  explicit Here([[maybe_unused]] const Tensor& tensor)
#ifndef CMRFAST_ON_HOST
      : guard_(tensor.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
  }
#else
  {
  }
#endif

  template <class Call>
  void run(const char* op, const char* (*launcher)(const Call&, void*), const Call& call) const {
    const char* error = launcher(call, stream_);
    STD_TORCH_CHECK(error == nullptr, op, ": ", error == nullptr ? "" : error);
  }

 private:
#ifndef CMRFAST_ON_HOST
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  void* stream_ = nullptr;
};

Dtype dtype_of(const char* op, ScalarType dtype) {
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

// float32 or float64, the dtypes that every op computes in.
Dtype computing_dtype(const char* op, const Tensor& tensor) {
  const Dtype dtype = dtype_of(op, tensor.scalar_type());
  STD_TORCH_CHECK(dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64, op,
                  ": values must be float32 or float64");
  return dtype;
}

void require_all_long(const char* op, const Tensor& a, const Tensor& b, const Tensor& c) {
  STD_TORCH_CHECK(a.scalar_type() == ScalarType::Long && b.scalar_type() == ScalarType::Long &&
                      c.scalar_type() == ScalarType::Long,
                  op, ": tables, starts and indices must be int64");
}

void require_all_double(const char* op, const Tensor& a, const Tensor& b) {
  STD_TORCH_CHECK(a.scalar_type() == ScalarType::Double && b.scalar_type() == ScalarType::Double,
                  op, ": per-volume numbers and matrices must be float64");
}

void set_box(int64_t* box, const int64_t* sizes, int64_t dims) {
  box[0] = box[1] = box[2] = 1;
  for (int64_t a = 0; a < dims; ++a) box[3 - dims + a] = sizes[a];
}

Volumes volumes_of(const Tensor& table, int64_t channels, int64_t numel) {
  return {read<int64_t>(table), table.size(0), channels, table.size(1) - 1, numel};
}

Windows windows_of(const char* op, const Tensor& start, const Tensor* index, const Tensor* flips,
                   const int64_t* size) {
  const int64_t P = start.size(0), dims = start.size(1);
  STD_TORCH_CHECK((dims == 2 || dims == 3) && (index == nullptr || index->numel() == P) &&
                      (flips == nullptr || flips->numel() == 0 || flips->numel() == P * dims),
                  op, ": starts, indices and flips do not fit one another");
  Windows windows{};
  windows.start = read<int64_t>(start);
  windows.index = index == nullptr ? nullptr : read<int64_t>(*index);
  if (flips != nullptr && flips->numel() > 0) windows.flips = read<bool>(*flips);
  windows.P = P;
  windows.dims = dims;
  set_box(windows.size, size, dims);
  return windows;
}

std::vector<int64_t> shape_of(int64_t a, int64_t b, Sizes size) {
  std::vector<int64_t> shape{a, b};
  shape.insert(shape.end(), size.begin(), size.end());
  return shape;
}

Tensor extract_patches(const Tensor& buffer_any, const Tensor& table_any, const Tensor& start_any,
                       const Tensor& index_any, const Tensor& flips_any, const Tensor& shift_any,
                       const Tensor& scale_any, int64_t channels, Sizes size, double fill,
                       ScalarType dtype) {
  constexpr auto op = "extract_patches";
  const Here here(buffer_any);
  const Tensor buffer = contiguous(buffer_any), table = contiguous(table_any);
  const Tensor start = contiguous(start_any), index = contiguous(index_any);
  const Tensor flips = contiguous(flips_any);
  const Tensor shift = contiguous(shift_any), scale = contiguous(scale_any);
  require_all_long(op, table, start, index);
  require_all_double(op, shift, scale);
  const Volumes volumes = volumes_of(table, channels, buffer.numel());
  STD_TORCH_CHECK(start.size(1) == volumes.dims && shift.numel() == volumes.V * channels &&
                      scale.numel() == shift.numel(),
                  "extract_patches: arguments do not fit one another");
  Tensor out = new_empty(buffer, shape_of(start.size(0), channels, size), dtype);
  here.run(op, cmrfast_extract_patches,
           ExtractPatches{volumes, windows_of(op, start, &index, &flips, size.data()),
                          buffer.const_data_ptr(), dtype_of(op, buffer.scalar_type()),
                          dtype_of(op, dtype), read<double>(shift), read<double>(scale), fill,
                          out.mutable_data_ptr()});
  return out;
}

Tensor extract_patches_backward(const Tensor& grad_any, const Tensor& table_any,
                                const Tensor& start_any, const Tensor& index_any,
                                const Tensor& flips_any, const Tensor& scale_any, int64_t numel) {
  constexpr auto op = "extract_patches_backward";
  const Here here(grad_any);
  const Tensor grad = contiguous(grad_any), table = contiguous(table_any);
  const Tensor start = contiguous(start_any), index = contiguous(index_any);
  const Tensor flips = contiguous(flips_any), scale = contiguous(scale_any);
  require_all_long(op, table, start, index);
  require_all_double(op, scale, scale);
  const Volumes volumes = volumes_of(table, grad.size(1), numel);
  STD_TORCH_CHECK(start.size(1) == volumes.dims && grad.dim() == 2 + volumes.dims &&
                      grad.size(0) == start.size(0) && scale.numel() == volumes.V * volumes.C,
                  "extract_patches_backward: arguments do not fit one another");
  Tensor out = new_zeros(grad, {numel});
  here.run(op, cmrfast_extract_patches_backward,
           ExtractPatchesBackward{volumes,
                                  windows_of(op, start, &index, &flips, grad.sizes().data() + 2),
                                  grad.const_data_ptr(), computing_dtype(op, grad),
                                  read<double>(scale), out.mutable_data_ptr()});
  return out;
}

}  // namespace
}  // namespace cmrfast::cuda

STABLE_TORCH_LIBRARY_IMPL(CMRFAST_LIBRARY, CMRFAST_DEVICE, m) {
  m.impl("extract_patches", TORCH_BOX(&cmrfast::cuda::extract_patches));
  m.impl("extract_patches_backward", TORCH_BOX(&cmrfast::cuda::extract_patches_backward));
}

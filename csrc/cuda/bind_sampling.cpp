// Affine sampling and smoothing, as operators.
#include <tuple>

#include "binding.h"

namespace cmrfast::cuda {
namespace {

Tensor contract_axis(const Tensor& values_any, const Tensor& weights_any) {
  constexpr auto op = "contract_axis";
  const OnDevice device(values_any);
  const Tensor values = contiguous(values_any), weights = contiguous(weights_any);
  STD_TORCH_CHECK(values.dim() == 3 && weights.dim() == 2 && weights.size(1) == values.size(1),
                  "contract_axis: values must be (O, n, I), weights (M, n)");
  require_all_double(op, {&weights});
  const int64_t O = values.size(0), n = values.size(1), I = values.size(2), M = weights.size(0);
  Tensor nonzero = new_empty(values, {M, 2}, ScalarType::Long);
  Tensor rounded = new_empty(values, {M, n});
  Tensor out = new_empty(values, {O, M, I});
  device.launch(op, cmrfast_contract_axis,
                ContractAxis{O, n, I, M, values.const_data_ptr(), read<double>(weights),
                             computing_dtype(op, values), write<int64_t>(nonzero),
                             rounded.mutable_data_ptr(), out.mutable_data_ptr()});
  return out;
}

Tensor vox_from_vox(const Tensor& world_from_vox_any, const Tensor& to_world_from_vox_any,
                    int64_t axes) {
  constexpr auto op = "vox_from_vox";
  const OnDevice device(world_from_vox_any);
  const Tensor world_from_vox = contiguous(world_from_vox_any);
  const Tensor to_world_from_vox = contiguous(to_world_from_vox_any);
  STD_TORCH_CHECK(
      world_from_vox.numel() == 16 && to_world_from_vox.numel() == 16 && (axes == 2 || axes == 3),
      "vox_from_vox: affines must be (4, 4), axes 2 or 3");
  Tensor out = new_empty(world_from_vox, {axes, axes + 1}, ScalarType::Double);
  device.launch(op, cmrfast_vox_from_vox,
                VoxFromVox{world_from_vox.const_data_ptr(), to_world_from_vox.const_data_ptr(),
                           computing_dtype(op, world_from_vox) == Dtype::kFloat64,
                           computing_dtype(op, to_world_from_vox) == Dtype::kFloat64, axes,
                           write<double>(out)});
  return out;
}

Sampling sampling_of(const char* op, const Tensor& images, const Tensor& matrix,
                     const int64_t* size, int64_t frame, int64_t mode, int64_t border) {
  const int64_t dims = images.dim() - 2;
  STD_TORCH_CHECK((dims == 2 || dims == 3) && matrix.dim() == 3 && matrix.size(1) == dims &&
                      matrix.size(2) == dims + 1 &&
                      (matrix.size(0) == 1 || matrix.size(0) == images.size(0)),
                  op, ": images and matrix do not fit one another");
  Sampling sampling{};
  sampling.B = images.size(0);
  sampling.C = images.size(1);
  sampling.dims = dims;
  for (int64_t a = 0; a < dims; ++a) {
    sampling.n[a] = images.size(a + 2);
    sampling.size[a] = size[a];
  }
  sampling.matrix = matrix.const_data_ptr();
  sampling.matrices = matrix.size(0);
  sampling.matrix_is_double = computing_dtype(op, matrix) == Dtype::kFloat64;
  sampling.frame = static_cast<Frame>(frame);
  sampling.mode = static_cast<Mode>(mode);
  sampling.border = static_cast<Border>(border);
  sampling.dtype = dtype_of(op, images.scalar_type());
  if (sampling.mode == Mode::kLinear) floating_dtype(op, images);
  return sampling;
}

Tensor affine_sample(const Tensor& images_any, const Tensor& matrix_any, Sizes size, int64_t frame,
                     int64_t mode, int64_t border, double fill) {
  constexpr auto op = "affine_sample";
  const OnDevice device(images_any);
  const Tensor images = contiguous(images_any), matrix = contiguous(matrix_any);
  Tensor out = new_empty(images, concat({images.size(0), images.size(1)}, size));
  device.launch(op, cmrfast_affine_sample,
                AffineSample{sampling_of(op, images, matrix, size.data(), frame, mode, border),
                             images.const_data_ptr(), fill, out.mutable_data_ptr()});
  return out;
}

std::tuple<Tensor, Tensor> affine_sample_backward(const Tensor& grad_any, const Tensor& images_any,
                                                  const Tensor& matrix_any, int64_t frame,
                                                  int64_t mode, int64_t border, bool for_images,
                                                  bool for_matrix) {
  constexpr auto op = "affine_sample_backward";
  const OnDevice device(grad_any);
  const Tensor grad = contiguous(grad_any), images = contiguous(images_any);
  const Tensor matrix = contiguous(matrix_any);
  const int64_t B = images.size(0), C = images.size(1), dims = images.dim() - 2;
  STD_TORCH_CHECK(grad.dim() == images.dim() && grad.size(0) == B && grad.size(1) == C &&
                      grad.scalar_type() == images.scalar_type(),
                  "affine_sample_backward: grad does not fit the images");
  const int64_t* size = grad.sizes().data() + 2;
  const Sampling s = sampling_of(op, images, matrix, size, frame, mode, border);
  floating_dtype(op, images);
  const bool linear = for_matrix && s.mode == Mode::kLinear;
  Tensor grad_images = for_images ? new_empty(images, images.sizes()) : new_empty(images, {0});
  Tensor grad_matrix =
      linear ? new_empty(matrix, matrix.sizes()) : new_zeros(matrix, matrix.sizes());
  const int64_t chunks = linear ? B * chunks_of(dims, size) : 0;
  Tensor partial = new_empty(matrix, {chunks * dims * (dims + 1)}, ScalarType::Double);
  device.launch(op, cmrfast_affine_sample_backward,
                AffineSampleBackward{s, grad.const_data_ptr(), images.const_data_ptr(),
                                     for_images ? grad_images.mutable_data_ptr() : nullptr,
                                     linear ? grad_matrix.mutable_data_ptr() : nullptr,
                                     write<double>(partial)});
  return {grad_images, grad_matrix};
}

}  // namespace
}  // namespace cmrfast::cuda

STABLE_TORCH_LIBRARY_IMPL(CMRFAST_LIBRARY, CMRFAST_DEVICE, m) {
  m.impl("vox_from_vox", TORCH_BOX(&cmrfast::cuda::vox_from_vox));
  m.impl("contract_axis", TORCH_BOX(&cmrfast::cuda::contract_axis));
  m.impl("affine_sample", TORCH_BOX(&cmrfast::cuda::affine_sample));
  m.impl("affine_sample_backward", TORCH_BOX(&cmrfast::cuda::affine_sample_backward));
}

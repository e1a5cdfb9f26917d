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

#include <optional>
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

MergePatches merge_call(const char* op, const Tensor& patches, const Tensor& start,
                        const std::optional<Tensor>& weight, const int64_t* shape) {
  const int64_t dims = start.size(1);
  STD_TORCH_CHECK(start.scalar_type() == ScalarType::Long && start.size(0) == patches.size(0) &&
                      patches.dim() == dims + 2,
                  op, ": patches and start_vox do not fit one another");
  MergePatches call{};
  call.windows = windows_of(op, start, nullptr, nullptr, patches.sizes().data() + 2);
  call.C = patches.size(1);
  set_box(call.shape, shape, dims);
  call.patches = patches.const_data_ptr();
  call.dtype = computing_dtype(op, patches);
  if (weight) {
    const int64_t* size = call.windows.size;
    STD_TORCH_CHECK(weight->scalar_type() == patches.scalar_type() &&
                        weight->numel() == size[0] * size[1] * size[2],
                    op, ": weight does not fit the patches");
    call.weight = weight->const_data_ptr();
  }
  return call;
}

std::optional<Tensor> contiguous_if_any(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(contiguous(*tensor)) : std::nullopt;
}

Tensor merge_patches(const Tensor& patches_any, const Tensor& start_any,
                     const std::optional<Tensor>& weight_any, Sizes shape, double fill) {
  constexpr auto op = "merge_patches";
  const Here here(patches_any);
  const Tensor patches = contiguous(patches_any), start = contiguous(start_any);
  const std::optional<Tensor> weight = contiguous_if_any(weight_any);
  MergePatches call = merge_call(op, patches, start, weight, shape.data());
  std::vector<int64_t> sizes{call.C};
  sizes.insert(sizes.end(), shape.begin(), shape.end());
  Tensor out = new_empty(patches, sizes);
  call.mean = true;
  call.fill = fill;
  call.out = out.mutable_data_ptr();
  here.run(op, cmrfast_merge_patches, call);
  return out;
}

void merge_add(Tensor& sums, Tensor& totals, const Tensor& patches_any, const Tensor& start_any,
               const std::optional<Tensor>& weight_any) {
  constexpr auto op = "merge_add";
  const Here here(sums);
  const Tensor patches = contiguous(patches_any), start = contiguous(start_any);
  const std::optional<Tensor> weight = contiguous_if_any(weight_any);
  MergePatches call = merge_call(op, patches, start, weight, totals.sizes().data());
  STD_TORCH_CHECK(sums.is_contiguous() && totals.is_contiguous() &&
                      sums.scalar_type() == patches.scalar_type() &&
                      totals.scalar_type() == patches.scalar_type() &&
                      totals.dim() == call.windows.dims &&
                      sums.numel() == call.C * totals.numel(),
                  "merge_add: sums and totals do not fit the patches");
  call.out = sums.mutable_data_ptr();
  call.totals = totals.mutable_data_ptr();
  here.run(op, cmrfast_merge_patches, call);
}

Tensor window_counts(const Tensor& mask_any, const Tensor& table_any, const Tensor& start_any,
                     const Tensor& index_any, Sizes size) {
  constexpr auto op = "window_counts";
  const Here here(mask_any);
  const Tensor mask = contiguous(mask_any), table = contiguous(table_any);
  const Tensor start = contiguous(start_any), index = contiguous(index_any);
  require_all_long(op, table, start, index);
  const Volumes volumes = volumes_of(table, 1, mask.numel());
  STD_TORCH_CHECK(mask.element_size() == 1 && start.size(1) == volumes.dims,
                  "window_counts: arguments do not fit one another");
  const auto wide = mask.numel() >> 31 ? ScalarType::Long : ScalarType::Int;
  Tensor sums = new_empty(mask, {mask.numel()}, wide);
  Tensor out = new_empty(start, {start.size(0)});
  here.run(op, cmrfast_window_counts,
           WindowCounts{volumes, windows_of(op, start, &index, nullptr, size.data()),
                        static_cast<const uint8_t*>(mask.const_data_ptr()),
                        sums.mutable_data_ptr(), write<int64_t>(out)});
  return out;
}

Tensor contract_axis(const Tensor& values_any, const Tensor& weights_any) {
  constexpr auto op = "contract_axis";
  const Here here(values_any);
  const Tensor values = contiguous(values_any), weights = contiguous(weights_any);
  STD_TORCH_CHECK(values.dim() == 3 && weights.dim() == 2 && weights.size(1) == values.size(1),
                  "contract_axis: values must be (O, n, I), weights (M, n)");
  require_all_double(op, weights, weights);
  const int64_t O = values.size(0), n = values.size(1), I = values.size(2), M = weights.size(0);
  Tensor reach = new_empty(values, {M, 2}, ScalarType::Long);
  Tensor out = new_empty(values, {O, M, I});
  here.run(op, cmrfast_contract_axis,
           ContractAxis{O, n, I, M, values.const_data_ptr(), read<double>(weights),
                        computing_dtype(op, values), write<int64_t>(reach),
                        out.mutable_data_ptr()});
  return out;
}

Sampling sampling_of(const char* op, const Tensor& images, const Tensor& matrix,
                     const int64_t* size, int64_t mode, int64_t border) {
  const int64_t dims = images.dim() - 2;
  STD_TORCH_CHECK((dims == 2 || dims == 3) && matrix.numel() == images.size(0) * dims * (dims + 1),
                  op, ": images and matrix do not fit one another");
  require_all_double(op, matrix, matrix);
  Sampling sampling{};
  sampling.B = images.size(0);
  sampling.C = images.size(1);
  sampling.dims = dims;
  for (int64_t a = 0; a < dims; ++a) {
    sampling.n[a] = images.size(a + 2);
    sampling.size[a] = size[a];
  }
  sampling.matrix = read<double>(matrix);
  sampling.mode = static_cast<Mode>(mode);
  sampling.border = static_cast<Border>(border);
  sampling.dtype = dtype_of(op, images.scalar_type());
  if (sampling.mode == Mode::kLinear) computing_dtype(op, images);
  return sampling;
}

Tensor affine_sample(const Tensor& images_any, const Tensor& matrix_any, Sizes size, int64_t mode,
                     int64_t border, double fill) {
  constexpr auto op = "affine_sample";
  const Here here(images_any);
  const Tensor images = contiguous(images_any), matrix = contiguous(matrix_any);
  Tensor out = new_empty(images, shape_of(images.size(0), images.size(1), size));
  here.run(op, cmrfast_affine_sample,
           AffineSample{sampling_of(op, images, matrix, size.data(), mode, border),
                        images.const_data_ptr(), fill, out.mutable_data_ptr()});
  return out;
}

std::tuple<Tensor, Tensor> affine_sample_backward(const Tensor& grad_any, const Tensor& images_any,
                                                  const Tensor& matrix_any, int64_t mode,
                                                  int64_t border, bool for_images,
                                                  bool for_matrix) {
  constexpr auto op = "affine_sample_backward";
  const Here here(grad_any);
  const Tensor grad = contiguous(grad_any), images = contiguous(images_any);
  const Tensor matrix = contiguous(matrix_any);
  const int64_t B = images.size(0), C = images.size(1), dims = images.dim() - 2;
  STD_TORCH_CHECK(grad.dim() == images.dim() && grad.size(0) == B && grad.size(1) == C &&
                      grad.scalar_type() == images.scalar_type(),
                  "affine_sample_backward: grad does not fit the images");
  const Sampling s = sampling_of(op, images, matrix, grad.sizes().data() + 2, mode, border);
  computing_dtype(op, images);
  int64_t voxels = B > 0 && C > 0 ? grad.numel() / (B * C) : 0;
  const int64_t stretches = B * ((voxels + kMatrixStretch - 1) / kMatrixStretch);
  Tensor to_images = for_images ? new_zeros(images, images.sizes()) : new_empty(images, {0});
  Tensor to_matrix = new_zeros(matrix, matrix.sizes());
  Tensor sums = new_zeros(matrix, {for_images ? images.numel() : 0}, ScalarType::Long);
  Tensor largest = new_zeros(matrix, {for_images ? B * C : 0}, ScalarType::Long);
  const bool pull = for_matrix && s.mode == Mode::kLinear;
  Tensor partial = new_empty(matrix, {pull ? stretches * dims * (dims + 1) : 0});
  here.run(op, cmrfast_affine_sample_backward,
           AffineSampleBackward{s, grad.const_data_ptr(), images.const_data_ptr(),
                                for_images ? to_images.mutable_data_ptr() : nullptr,
                                write<int64_t>(sums), write<int64_t>(largest),
                                pull ? write<double>(to_matrix) : nullptr,
                                write<double>(partial)});
  return {to_images, to_matrix};
}

Pixels pixels_of(const char* op, const Tensor& logits, const Tensor& target, int64_t activation,
                 int64_t ignore_index, double eps) {
  Pixels s{};
  s.B = logits.size(0);
  s.K = logits.size(1);
  s.N = logits.size(2);
  s.ignore_index = ignore_index;
  s.logits = logits.const_data_ptr();
  s.target = target.const_data_ptr();
  s.dtype = computing_dtype(op, logits);
  s.target_dtype = dtype_of(op, target.scalar_type());
  s.labels = target.dim() == 2;
  s.activation = static_cast<Activation>(activation);
  s.eps = eps;
  const bool real = s.target_dtype == Dtype::kFloat32 || s.target_dtype == Dtype::kFloat64;
  STD_TORCH_CHECK(target.numel() == (s.labels ? s.B * s.N : s.B * s.K * s.N), op,
                  ": logits and target must have matching shapes");
  STD_TORCH_CHECK(real ? !s.labels
                       : s.target_dtype <= Dtype::kInt64 && s.target_dtype != Dtype::kInt8,
                  op, ": no kernel for this dtype of target");
  return s;
}

Tensor dice_ce_sums(const Tensor& logits_any, const Tensor& target_any, int64_t activation,
                    int64_t ignore_index, double eps, bool entropy) {
  constexpr auto op = "dice_ce_sums";
  const Here here(logits_any);
  const Tensor logits = contiguous(logits_any), target = contiguous(target_any);
  const Pixels s = pixels_of(op, logits, target, activation, ignore_index, eps);
  const int64_t stretches = (s.N + kPixelStretch - 1) / kPixelStretch;
  const bool prepared = s.activation == Activation::kSoftmax && s.K > class_group(s.dtype);
  Tensor softmax = new_empty(logits, {prepared ? s.B * s.N * 2 : 0});
  Tensor partial = new_empty(logits, {s.B * stretches * s.K * 4}, ScalarType::Double);
  Tensor out = new_empty(logits, {s.B, s.K, 4});
  here.run(op, cmrfast_dice_ce_sums,
           DiceCeSums{s, entropy, prepared ? softmax.mutable_data_ptr() : nullptr,
                      write<double>(partial), out.mutable_data_ptr()});
  return out;
}

Tensor dice_ce_sums_backward(const Tensor& grad_any, const Tensor& logits_any,
                             const Tensor& target_any, int64_t activation, int64_t ignore_index,
                             double eps) {
  constexpr auto op = "dice_ce_sums_backward";
  const Here here(logits_any);
  const Tensor logits = contiguous(logits_any), target = contiguous(target_any);
  const Tensor grad = contiguous(grad_any);
  const Pixels s = pixels_of(op, logits, target, activation, ignore_index, eps);
  STD_TORCH_CHECK(grad.numel() == s.B * s.K * 4 && grad.scalar_type() == logits.scalar_type(),
                  "dice_ce_sums_backward: grad does not fit the logits");
  Tensor out = new_empty(logits, {s.B, s.K, s.N});
  here.run(op, cmrfast_dice_ce_sums_backward,
           DiceCeSumsBackward{s, grad.const_data_ptr(), out.mutable_data_ptr()});
  return out;
}

Tensor label_faults(const Tensor& target_any, int64_t classes, int64_t ignore_index) {
  constexpr auto op = "label_faults";
  const Here here(target_any);
  const Tensor target = contiguous(target_any);
  Tensor out = new_zeros(target, {}, ScalarType::Long);
  here.run(op, cmrfast_label_faults,
           LabelFaults{target.const_data_ptr(), dtype_of(op, target.scalar_type()), target.numel(),
                       classes, ignore_index, write<int64_t>(out)});
  return out;
}

std::tuple<Tensor, Tensor, Tensor> nt_xent(const Tensor& anchors_any, const Tensor& candidates_any,
                                           const Tensor& targets_any, double temperature,
                                           bool gradients) {
  constexpr auto op = "nt_xent";
  const Here here(anchors_any);
  const Tensor anchors = contiguous(anchors_any), candidates = contiguous(candidates_any);
  const Tensor targets = contiguous(targets_any);
  const int64_t N = anchors.size(0), M = candidates.size(0), D = anchors.size(1);
  constexpr int64_t widest = 65535 * 32;  // columns that one launch has blocks for
  STD_TORCH_CHECK(candidates.size(1) == D && targets.numel() == N && M > 0 && D > 0 &&
                      D <= widest && candidates.scalar_type() == anchors.scalar_type() &&
                      targets.scalar_type() == ScalarType::Long,
                  "nt_xent: anchors, candidates and targets do not fit one another");
  Tensor unit_anchors = new_empty(anchors, {N, D}), unit_candidates = new_empty(anchors, {M, D});
  Tensor anchor_inverse = new_empty(anchors, {N}), candidate_inverse = new_empty(anchors, {M});
  Tensor top = new_empty(anchors, {N}), sum = new_empty(anchors, {N});
  Tensor losses = new_empty(anchors, {N}, ScalarType::Double);
  Tensor loss = new_empty(anchors, {});
  Tensor grad_anchors = new_empty(anchors, {gradients ? N : 0, D});
  Tensor grad_candidates = new_empty(anchors, {gradients ? M : 0, D});
  NtXent call{};
  call.N = N;
  call.M = M;
  call.D = D;
  call.anchors = anchors.const_data_ptr();
  call.candidates = candidates.const_data_ptr();
  call.targets = read<int64_t>(targets);
  call.dtype = computing_dtype(op, anchors);
  call.temperature = temperature;
  call.unit_anchors = unit_anchors.mutable_data_ptr();
  call.unit_candidates = unit_candidates.mutable_data_ptr();
  call.anchor_inverse = anchor_inverse.mutable_data_ptr();
  call.candidate_inverse = candidate_inverse.mutable_data_ptr();
  call.top = top.mutable_data_ptr();
  call.sum = sum.mutable_data_ptr();
  call.losses = write<double>(losses);
  call.loss = loss.mutable_data_ptr();
  if (gradients) {
    call.grad_anchors = grad_anchors.mutable_data_ptr();
    call.grad_candidates = grad_candidates.mutable_data_ptr();
  }
  here.run(op, cmrfast_nt_xent, call);
  return {loss, grad_anchors, grad_candidates};
}

}  // namespace
}  // namespace cmrfast::cuda

STABLE_TORCH_LIBRARY_IMPL(CMRFAST_LIBRARY, CMRFAST_DEVICE, m) {
  m.impl("extract_patches", TORCH_BOX(&cmrfast::cuda::extract_patches));
  m.impl("extract_patches_backward", TORCH_BOX(&cmrfast::cuda::extract_patches_backward));
  m.impl("merge_patches", TORCH_BOX(&cmrfast::cuda::merge_patches));
  m.impl("merge_add", TORCH_BOX(&cmrfast::cuda::merge_add));
  m.impl("window_counts", TORCH_BOX(&cmrfast::cuda::window_counts));
  m.impl("contract_axis", TORCH_BOX(&cmrfast::cuda::contract_axis));
  m.impl("affine_sample", TORCH_BOX(&cmrfast::cuda::affine_sample));
  m.impl("affine_sample_backward", TORCH_BOX(&cmrfast::cuda::affine_sample_backward));
  m.impl("dice_ce_sums", TORCH_BOX(&cmrfast::cuda::dice_ce_sums));
  m.impl("dice_ce_sums_backward", TORCH_BOX(&cmrfast::cuda::dice_ce_sums_backward));
  m.impl("label_faults", TORCH_BOX(&cmrfast::cuda::label_faults));
  m.impl("nt_xent", TORCH_BOX(&cmrfast::cuda::nt_xent));
}

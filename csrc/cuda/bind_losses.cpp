// The sums of Dice and cross entropy, and NT-Xent, as operators.
#include <tuple>

#include "binding.h"

namespace cmrfast::cuda {
namespace {

Pixels pixels_of(const char* op, const Tensor& logits, const Tensor& target, int64_t activation,
                 int64_t ignore_index, double eps) {
  Pixels s{};
  s.B = logits.size(0);
  s.K = logits.size(1);
  s.N = logits.size(2);
  s.ignore_index = ignore_index;
  s.logits = logits.const_data_ptr();
  s.target = target.const_data_ptr();
  s.dtype = floating_dtype(op, logits);
  s.target_dtype = dtype_of(op, target.scalar_type());
  s.labels = target.dim() == 2;
  s.activation = static_cast<Activation>(activation);
  s.eps = eps;
  const bool real = s.target_dtype == Dtype::kFloat32 || s.target_dtype == Dtype::kFloat64;
  STD_TORCH_CHECK(target.numel() == (s.labels ? s.B * s.N : s.B * s.K * s.N), op,
                  ": logits and target must have matching shapes");
  STD_TORCH_CHECK(
      real ? !s.labels : s.target_dtype <= Dtype::kInt64 && s.target_dtype != Dtype::kInt8, op,
      ": no kernel for this dtype of target");
  return s;
}

Tensor dice_ce_sums(const Tensor& logits_any, const Tensor& target_any, int64_t activation,
                    int64_t ignore_index, double eps, bool entropy) {
  constexpr auto op = "dice_ce_sums";
  const OnDevice device(logits_any);
  const Tensor logits = contiguous(logits_any), target = contiguous(target_any);
  const Pixels s = pixels_of(op, logits, target, activation, ignore_index, eps);
  const int64_t chunks = (s.N + kPixelChunk - 1) / kPixelChunk;
  const bool two_pass = s.activation == Activation::kSoftmax && s.K > class_group(s.dtype);
  Tensor softmax = new_empty(logits, {two_pass ? s.B * s.N * 2 : 0}, sum_dtype(logits));
  Tensor partial = new_empty(logits, {s.B * chunks * s.K * 4}, ScalarType::Double);
  Tensor out = new_empty(logits, {s.B, s.K, 4}, sum_dtype(logits));
  device.launch(op, cmrfast_dice_ce_sums,
                DiceCeSums{s, entropy, two_pass ? softmax.mutable_data_ptr() : nullptr,
                           write<double>(partial), out.mutable_data_ptr()});
  return out;
}

Tensor dice_ce_sums_backward(const Tensor& grad_any, const Tensor& logits_any,
                             const Tensor& target_any, int64_t activation, int64_t ignore_index,
                             double eps) {
  constexpr auto op = "dice_ce_sums_backward";
  const OnDevice device(logits_any);
  const Tensor logits = contiguous(logits_any), target = contiguous(target_any);
  const Tensor grad = contiguous(grad_any);
  const Pixels s = pixels_of(op, logits, target, activation, ignore_index, eps);
  STD_TORCH_CHECK(grad.numel() == s.B * s.K * 4 && grad.scalar_type() == sum_dtype(logits),
                  "dice_ce_sums_backward: grad does not fit the logits");
  Tensor out = new_empty(logits, {s.B, s.K, s.N});
  device.launch(op, cmrfast_dice_ce_sums_backward,
                DiceCeSumsBackward{s, grad.const_data_ptr(), out.mutable_data_ptr()});
  return out;
}

Tensor label_faults(const Tensor& target_any, int64_t classes, int64_t ignore_index) {
  constexpr auto op = "label_faults";
  const OnDevice device(target_any);
  const Tensor target = contiguous(target_any);
  Tensor out = new_zeros(target, {}, ScalarType::Long);
  device.launch(op, cmrfast_label_faults,
                LabelFaults{target.const_data_ptr(), dtype_of(op, target.scalar_type()),
                            target.numel(), classes, ignore_index, write<int64_t>(out)});
  return out;
}

std::tuple<Tensor, Tensor, Tensor> nt_xent(const Tensor& anchors_any, const Tensor& candidates_any,
                                           const Tensor& targets_any, double temperature,
                                           bool gradients) {
  constexpr auto op = "nt_xent";
  const OnDevice device(anchors_any);
  const Tensor anchors = contiguous(anchors_any), candidates = contiguous(candidates_any);
  const Tensor targets = contiguous(targets_any);
  const int64_t N = anchors.size(0), M = candidates.size(0), D = anchors.size(1);
  constexpr int64_t max_columns = 65535 * 32;  // limit of the grid's y axis
  STD_TORCH_CHECK(candidates.size(1) == D && targets.numel() == N && M > 0 && D > 0 &&
                      D <= max_columns && candidates.scalar_type() == anchors.scalar_type() &&
                      targets.scalar_type() == ScalarType::Long,
                  "nt_xent: anchors, candidates and targets do not fit one another");
  const auto of_sums = [&](Sizes shape) { return new_empty(anchors, shape, sum_dtype(anchors)); };
  Tensor unit_anchors = of_sums({N, D}), unit_candidates = of_sums({M, D});
  Tensor anchor_inverse_norm = of_sums({N}), candidate_inverse_norm = of_sums({M});
  Tensor row_max = of_sums({N}), row_sum = of_sums({N});
  Tensor losses = new_empty(anchors, {N}, ScalarType::Double);
  Tensor loss = of_sums({});
  Tensor grad_anchors = of_sums({gradients ? N : 0, D});
  Tensor grad_candidates = of_sums({gradients ? M : 0, D});
  NtXent call{};
  call.N = N;
  call.M = M;
  call.D = D;
  call.anchors = anchors.const_data_ptr();
  call.candidates = candidates.const_data_ptr();
  call.targets = read<int64_t>(targets);
  call.dtype = floating_dtype(op, anchors);
  call.temperature = temperature;
  call.unit_anchors = unit_anchors.mutable_data_ptr();
  call.unit_candidates = unit_candidates.mutable_data_ptr();
  call.anchor_inverse_norm = anchor_inverse_norm.mutable_data_ptr();
  call.candidate_inverse_norm = candidate_inverse_norm.mutable_data_ptr();
  call.row_max = row_max.mutable_data_ptr();
  call.row_sum = row_sum.mutable_data_ptr();
  call.losses = write<double>(losses);
  call.loss = loss.mutable_data_ptr();
  if (gradients) {
    call.grad_anchors = grad_anchors.mutable_data_ptr();
    call.grad_candidates = grad_candidates.mutable_data_ptr();
  }
  device.launch(op, cmrfast_nt_xent, call);
  return {loss, grad_anchors, grad_candidates};
}

}  // namespace
}  // namespace cmrfast::cuda

STABLE_TORCH_LIBRARY_IMPL(CMRFAST_LIBRARY, CMRFAST_DEVICE, m) {
  m.impl("dice_ce_sums", TORCH_BOX(&cmrfast::cuda::dice_ce_sums));
  m.impl("dice_ce_sums_backward", TORCH_BOX(&cmrfast::cuda::dice_ce_sums_backward));
  m.impl("label_faults", TORCH_BOX(&cmrfast::cuda::label_faults));
  m.impl("nt_xent", TORCH_BOX(&cmrfast::cuda::nt_xent));
}

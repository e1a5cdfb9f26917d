// Cutting, merging and counting windows, as operators.
#include <optional>

#include "binding.h"

namespace cmrfast::cuda {
namespace {

Windows windows_of(const char* op, const Tensor& start, const Tensor* index, const Tensor* flips,
                   const int64_t* size) {
  const int64_t P = start.size(0), dims = start.size(1);
  STD_TORCH_CHECK((dims == 2 || dims == 3) &&
                      (index == nullptr || index->numel() == 0 || index->numel() == P) &&
                      (flips == nullptr || flips->numel() == 0 || flips->numel() == P * dims),
                  op, ": starts, indices and flips do not fit one another");
  Windows windows{};
  windows.start = read<int64_t>(start);
  if (index != nullptr && index->numel() > 0) windows.index = read<int64_t>(*index);
  if (flips != nullptr && flips->numel() > 0) windows.flips = read<bool>(*flips);
  windows.P = P;
  windows.dims = dims;
  windows.size = box_of(size, dims);
  return windows;
}

// Whether there is a number for each channel of each volume, or none at all.
bool fits(const Tensor& numbers, const Volumes& volumes) {
  return numbers.numel() == 0 || numbers.numel() == volumes.V * volumes.C;
}

const double* read_or_null(const Tensor& numbers) {
  return numbers.numel() == 0 ? nullptr : read<double>(numbers);
}

// Scratch for the windows of each slab of V volumes.
struct ListScratch {
  Tensor ranges, windows;

  ListScratch(const Tensor& like, const Windows& of, int64_t V)
      : ranges(new_empty(like, {V, kSlabs, 2}, ScalarType::Long)),
        windows(new_empty(like, {of.P * most_slabs(of.size, of.dims)}, ScalarType::Long)) {}
  SlabLists lists() const { return {write<int64_t>(ranges), write<int64_t>(windows)}; }
};

void extract_patches_into(const Tensor& buffer_any, const Tensor& table_any, Sizes shape,
                          const Tensor& start_any, const Tensor& index_any, const Tensor& flips_any,
                          const Tensor& shift_any, const Tensor& scale_any, double fill,
                          Tensor& out) {
  constexpr auto op = "extract_patches";
  const OnDevice device(buffer_any);
  const Tensor buffer = contiguous(buffer_any), table = contiguous(table_any);
  const Tensor start = contiguous(start_any), index = contiguous(index_any);
  const Tensor flips = contiguous(flips_any);
  const Tensor shift = contiguous(shift_any), scale = contiguous(scale_any);
  require_all_long(op, {&table, &start, &index});
  require_all_double(op, {&shift, &scale});
  STD_TORCH_CHECK(out.dim() == start.size(1) + 2 && out.is_contiguous(),
                  "extract_patches: out must be contiguous, (P, C, *size)");
  const Volumes volumes = volumes_of(table, shape, out.size(1), buffer.numel());
  STD_TORCH_CHECK(start.size(1) == volumes.dims && out.size(0) == start.size(0) &&
                      fits(shift, volumes) && fits(scale, volumes),
                  "extract_patches: arguments do not fit one another");
  device.launch(
      op, cmrfast_extract_patches,
      ExtractPatches{volumes, windows_of(op, start, &index, &flips, out.sizes().data() + 2),
                     buffer.const_data_ptr(), dtype_of(op, buffer.scalar_type()),
                     dtype_of(op, out.scalar_type()), read_or_null(shift), read_or_null(scale),
                     fill, out.mutable_data_ptr()});
}

Tensor extract_patches(const Tensor& buffer, const Tensor& table, Sizes shape, const Tensor& start,
                       const Tensor& index, const Tensor& flips, const Tensor& shift,
                       const Tensor& scale, int64_t channels, Sizes size, double fill,
                       ScalarType dtype) {
  const OnDevice device(buffer);
  Tensor out = new_empty(buffer, concat({start.size(0), channels}, size), dtype);
  extract_patches_into(buffer, table, shape, start, index, flips, shift, scale, fill, out);
  return out;
}

Tensor extract_patches_backward(const Tensor& grad_any, const Tensor& table_any, Sizes shape,
                                const Tensor& start_any, const Tensor& index_any,
                                const Tensor& flips_any, const Tensor& scale_any, int64_t numel) {
  constexpr auto op = "extract_patches_backward";
  const OnDevice device(grad_any);
  const Tensor grad = contiguous(grad_any), table = contiguous(table_any);
  const Tensor start = contiguous(start_any), index = contiguous(index_any);
  const Tensor flips = contiguous(flips_any), scale = contiguous(scale_any);
  require_all_long(op, {&table, &start, &index});
  require_all_double(op, {&scale});
  const Volumes volumes = volumes_of(table, shape, grad.size(1), numel);
  STD_TORCH_CHECK(start.size(1) == volumes.dims && grad.dim() == 2 + volumes.dims &&
                      grad.size(0) == start.size(0) && fits(scale, volumes),
                  "extract_patches_backward: arguments do not fit one another");
  const Windows windows = windows_of(op, start, &index, &flips, grad.sizes().data() + 2);
  const ListScratch scratch(grad, windows, volumes.V);
  Tensor out = new_zeros(grad, {numel});
  device.launch(
      op, cmrfast_extract_patches_backward,
      ExtractPatchesBackward{volumes, windows, grad.const_data_ptr(), computing_dtype(op, grad),
                             read_or_null(scale), scratch.lists(), out.mutable_data_ptr()});
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
  call.shape = box_of(shape, dims);
  call.patches = patches.const_data_ptr();
  call.dtype = computing_dtype(op, patches);
  if (weight) {
    STD_TORCH_CHECK(weight->scalar_type() == patches.scalar_type() &&
                        weight->numel() == call.windows.size.voxels(),
                    op, ": weight does not fit the patches");
    call.weight = weight->const_data_ptr();
  }
  return call;
}

Tensor merge_patches(const Tensor& patches_any, const Tensor& start_any,
                     const std::optional<Tensor>& weight_any, Sizes shape, double fill) {
  constexpr auto op = "merge_patches";
  const OnDevice device(patches_any);
  const Tensor patches = contiguous(patches_any), start = contiguous(start_any);
  const std::optional<Tensor> weight = cmrfast::contiguous(weight_any);
  MergePatches call = merge_call(op, patches, start, weight, shape.data());
  const ListScratch scratch(patches, call.windows, 1);
  Tensor out = new_empty(patches, concat({call.C}, shape));
  call.lists = scratch.lists();
  call.mean = true;
  call.fill = fill;
  call.out = out.mutable_data_ptr();
  device.launch(op, cmrfast_merge_patches, call);
  return out;
}

void merge_add(Tensor& sums, Tensor& totals, const Tensor& patches_any, const Tensor& start_any,
               const std::optional<Tensor>& weight_any) {
  constexpr auto op = "merge_add";
  const OnDevice device(sums);
  const Tensor patches = contiguous(patches_any), start = contiguous(start_any);
  const std::optional<Tensor> weight = cmrfast::contiguous(weight_any);
  MergePatches call = merge_call(op, patches, start, weight, totals.sizes().data());
  STD_TORCH_CHECK(sums.is_contiguous() && totals.is_contiguous() &&
                      sums.scalar_type() == patches.scalar_type() &&
                      totals.scalar_type() == patches.scalar_type() &&
                      totals.dim() == call.windows.dims && sums.numel() == call.C * totals.numel(),
                  "merge_add: sums and totals do not fit the patches");
  const ListScratch scratch(sums, call.windows, 1);
  call.lists = scratch.lists();
  call.out = sums.mutable_data_ptr();
  call.totals = totals.mutable_data_ptr();
  device.launch(op, cmrfast_merge_patches, call);
}

Tensor window_counts(const Tensor& mask_any, const Tensor& table_any, Sizes shape,
                     const Tensor& start_any, const Tensor& index_any, Sizes size) {
  constexpr auto op = "window_counts";
  const OnDevice device(mask_any);
  const Tensor mask = contiguous(mask_any), table = contiguous(table_any);
  const Tensor start = contiguous(start_any), index = contiguous(index_any);
  require_all_long(op, {&table, &start, &index});
  const Volumes volumes = volumes_of(table, shape, 1, mask.numel());
  STD_TORCH_CHECK(mask.element_size() == 1 && start.size(1) == volumes.dims,
                  "window_counts: arguments do not fit one another");
  const auto sum_dtype = mask.numel() >> 31 ? ScalarType::Long : ScalarType::Int;
  Tensor sums = new_empty(mask, {mask.numel()}, sum_dtype);
  Tensor out = new_empty(start, {start.size(0)});
  device.launch(op, cmrfast_window_counts,
                WindowCounts{volumes, windows_of(op, start, &index, nullptr, size.data()),
                             static_cast<const uint8_t*>(mask.const_data_ptr()),
                             sums.mutable_data_ptr(), write<int64_t>(out)});
  return out;
}

}  // namespace
}  // namespace cmrfast::cuda

STABLE_TORCH_LIBRARY_IMPL(CMRFAST_LIBRARY, CMRFAST_DEVICE, m) {
  m.impl("extract_patches", TORCH_BOX(&cmrfast::cuda::extract_patches));
  m.impl("extract_patches_into", TORCH_BOX(&cmrfast::cuda::extract_patches_into));
  m.impl("extract_patches_backward", TORCH_BOX(&cmrfast::cuda::extract_patches_backward));
  m.impl("merge_patches", TORCH_BOX(&cmrfast::cuda::merge_patches));
  m.impl("merge_add", TORCH_BOX(&cmrfast::cuda::merge_add));
  m.impl("window_counts", TORCH_BOX(&cmrfast::cuda::window_counts));
}

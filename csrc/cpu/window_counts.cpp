// Nonzero voxels of windows from a summed-area table: eight look-ups, whatever the window's size.
//
// Tables are made volume by volume, only for volumes that have windows: first each plane on its
// own, then cumulatively over planes.
#include <vector>

#include "common.h"

namespace cmrfast::cpu {
namespace {

// Entry (i, j, k) sums all voxels before (i, j, k) on every axis; those with a zero index are 0.
struct SummedArea {
  Box shape;
  std::vector<int64_t> sums;

  int64_t stride_j() const { return shape.n[2] + 1; }
  int64_t stride_i() const { return (shape.n[1] + 1) * stride_j(); }

  SummedArea(const uint8_t* mask, Box box) : shape(box) {
    const int64_t row = stride_j(), plane = stride_i();
    sums.resize(static_cast<size_t>((shape.n[0] + 1) * plane));
    for_each_task(shape.n[0], [&](int64_t i) {
      for (int64_t j = 0; j < shape.n[1]; ++j) {
        const uint8_t* from = mask + (i * shape.n[1] + j) * shape.n[2];
        int64_t* to = sums.data() + (i + 1) * plane + (j + 1) * row + 1;
        int64_t along = 0;
        for (int64_t k = 0; k < shape.n[2]; ++k) {
          along += from[k] != 0;
          to[k] = to[k - row] + along;
        }
      }
    });
    for_each_task(shape.n[1] + 1, [&](int64_t j) {
      for (int64_t i = 1; i <= shape.n[0]; ++i) {
        int64_t* to = sums.data() + i * plane + j * row;
        for (int64_t k = 0; k < row; ++k) to[k] += to[k - plane];
      }
    });
  }

  int64_t count(const Inside& i, const Inside& j, const Inside& k, const int64_t* at) const {
    if (i.begin == i.end || j.begin == j.end || k.begin == k.end) return 0;
    const auto below = [&](int64_t a, int64_t b, int64_t c) {
      return sums[(at[0] + a) * stride_i() + (at[1] + b) * stride_j() + at[2] + c];
    };
    const auto plane = [&](int64_t a) {
      return below(a, j.end, k.end) - below(a, j.begin, k.end) - below(a, j.end, k.begin) +
             below(a, j.begin, k.begin);
    };
    return plane(i.end) - plane(i.begin);
  }
};

Tensor window_counts(const Tensor& mask_any, const Tensor& table_any,
                     torch::headeronly::IntHeaderOnlyArrayRef volume_shape, const Tensor& start_any,
                     const Tensor& index_any, torch::headeronly::IntHeaderOnlyArrayRef size) {
  const Tensor mask = torch::stable::contiguous(mask_any);
  const Tensor table = torch::stable::contiguous(table_any);
  const Tensor start = torch::stable::contiguous(start_any);
  const Tensor index = torch::stable::contiguous(index_any);
  require_all_long("window_counts", {&table, &start, &index});
  const int64_t dims = table.size(1) - 1, P = start.size(0);
  const Volumes volumes = volumes_of(table, volume_shape, 1, mask.numel());
  STD_TORCH_CHECK(mask.element_size() == 1 && start.size(1) == dims &&
                      (index.numel() == 0 || index.numel() == P),
                  "window_counts: arguments do not fit one another");
  const Box window = box_of(size.data(), dims);
  Tensor out = torch::stable::new_zeros(start, {P});
  std::vector<std::vector<int64_t>> windows_of(static_cast<size_t>(volumes.V));
  for (int64_t p = 0; p < P; ++p) {
    const int64_t v = index.numel() == 0 ? 0 : read<int64_t>(index)[p];
    if (v >= 0 && v < volumes.V) windows_of[v].push_back(p);
  }
  for (int64_t v = 0; v < volumes.V; ++v) {
    const Volume volume(volumes, v);
    if (windows_of[v].empty() || !volume.valid) continue;
    const Box shape = volume.shape;
    const SummedArea sums(static_cast<const uint8_t*>(mask.const_data_ptr()) + volume.offset,
                          shape);
    for (const int64_t p : windows_of[v]) {
      int64_t at[3];
      window_start(read<int64_t>(start), p, dims, at);
      write<int64_t>(out)[p] =
          sums.count({at[0], window.n[0], shape.n[0]}, {at[1], window.n[1], shape.n[1]},
                     {at[2], window.n[2], shape.n[2]}, at);
    }
  }
  return out;
}

}  // namespace
}  // namespace cmrfast::cpu

STABLE_TORCH_LIBRARY_IMPL(cmrfast, CPU, m) {
  m.impl("window_counts", TORCH_BOX(&cmrfast::cpu::window_counts));
}

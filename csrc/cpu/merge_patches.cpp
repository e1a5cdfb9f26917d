// Weighted mean of overlapping patches, gathered: each output row adds the patches that cover it.
//
// A task makes one plane of one channel. Rows stay in the first cache while their patches are added
// in patch order, so nothing is written twice and bits do not depend on threads. Least bytes: every
// patch once, the volume once.
#include <vector>

#include "windows.h"

namespace cmrfast::cpu {
namespace {

struct Patches {
  int64_t P, C, dims;
  Box size, shape;
  std::vector<int64_t> start;              // (P, 3)
  std::vector<std::vector<int32_t>> over;  // the patches over each plane, in order

  Patches(const Tensor& patches, const Tensor& start_vox, Box shape)
      : P(patches.size(0)), C(patches.size(1)), dims(start_vox.size(1)), shape(shape) {
    STD_TORCH_CHECK(start_vox.scalar_type() == ScalarType::Long && start_vox.size(0) == P &&
                        patches.dim() == dims + 2,
                    "merge_patches: patches and start_vox do not fit one another");
    size = box_of(patches.sizes().data() + 2, dims);
    start.resize(static_cast<size_t>(P * 3));
    over.resize(static_cast<size_t>(shape.n[0]));
    for (int64_t p = 0; p < P; ++p) {
      int64_t* at = start.data() + 3 * p;
      window_start(read<int64_t>(start_vox), p, dims, at);
      const Inside i(at[0], size.n[0], shape.n[0]);
      for (int64_t o = i.begin; o < i.end; ++o) over[at[0] + o].push_back(static_cast<int32_t>(p));
    }
  }
};

// Adds what covers row (i, j): weight * patch to `sum` (of channel c), weight to `total`; either
// may be null.
template <class T>
void add_row(const Patches& w, const T* patches, const T* weight, int64_t c, int64_t i, int64_t j,
             T* sum, T* total) {
  for (const int64_t p : w.over[i]) {
    const int64_t* at = w.start.data() + 3 * p;
    if (!Inside(at[1], w.size.n[1], w.shape.n[1]).has(j - at[1])) continue;
    const Inside k(at[2], w.size.n[2], w.shape.n[2]);
    const int64_t n = k.end - k.begin;
    if (n == 0) continue;
    const int64_t row = ((i - at[0]) * w.size.n[1] + (j - at[1])) * w.size.n[2] + k.begin;
    const T* values = patches + (p * w.C + c) * w.size.volume() + row;
    const int64_t to = at[2] + k.begin;
    if (weight == nullptr) {
      if (sum != nullptr) {
        for (int64_t o = 0; o < n; ++o) sum[to + o] += values[o];
      }
      if (total != nullptr) {
        for (int64_t o = 0; o < n; ++o) total[to + o] += 1;
      }
    } else {
      if (sum != nullptr) {
        for (int64_t o = 0; o < n; ++o) sum[to + o] += weight[row + o] * values[o];
      }
      if (total != nullptr) {
        for (int64_t o = 0; o < n; ++o) total[to + o] += weight[row + o];
      }
    }
  }
}

template <class Body>
void with_type(ScalarType dtype, const Body& body) {
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "merge_patches: patches must be float32 or float64");
  dtype == ScalarType::Double ? body(double{}) : body(float{});
}

Tensor merge_patches(const Tensor& patches_any, const Tensor& start_any,
                     const std::optional<Tensor>& weight_any,
                     torch::headeronly::IntHeaderOnlyArrayRef shape, double fill) {
  const Tensor patches = torch::stable::contiguous(patches_any);
  const Tensor start = torch::stable::contiguous(start_any);
  std::vector<int64_t> sizes{patches.size(1)};
  sizes.insert(sizes.end(), shape.begin(), shape.end());
  const Patches w(patches, start, box_of(shape.data(), static_cast<int64_t>(shape.size())));
  Tensor out = fresh(patches, sizes, patches.scalar_type());
  const std::optional<Tensor> weight =
      weight_any ? std::optional(torch::stable::contiguous(*weight_any)) : std::nullopt;
  with_type(patches.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* weights = weight ? read<T>(*weight) : nullptr;
    const int64_t rows = w.shape.n[1], n = w.shape.n[2];
    torch::stable::parallel_for(0, w.C * w.shape.n[0], 1, [&](int64_t begin, int64_t end) {
      std::vector<T> total(static_cast<size_t>(n));
      for (int64_t task = begin; task < end; ++task) {
        const int64_t c = task / w.shape.n[0], i = task % w.shape.n[0];
        for (int64_t j = 0; j < rows; ++j) {
          T* sum = write<T>(out) + (task * rows + j) * n;
          std::fill_n(sum, n, T{0});
          std::fill_n(total.data(), n, T{0});
          add_row(w, read<T>(patches), weights, c, i, j, sum, total.data());
          for (int64_t k = 0; k < n; ++k) {
            const T mean = sum[k] / total[k];
            sum[k] = total[k] > 0 ? mean : static_cast<T>(fill);
          }
        }
      }
    });
  });
  return out;
}

void merge_add(Tensor& sums, Tensor& totals, const Tensor& patches_any, const Tensor& start_any,
               const std::optional<Tensor>& weight_any) {
  const Tensor patches = torch::stable::contiguous(patches_any);
  const Tensor start = torch::stable::contiguous(start_any);
  const Patches w(patches, start, box_of(totals.sizes().data(), totals.dim()));
  STD_TORCH_CHECK(sums.is_contiguous() && totals.is_contiguous() &&
                      sums.scalar_type() == patches.scalar_type() &&
                      totals.scalar_type() == patches.scalar_type() &&
                      sums.numel() == w.C * totals.numel(),
                  "merge_add: sums and totals do not fit the patches");
  const std::optional<Tensor> weight =
      weight_any ? std::optional(torch::stable::contiguous(*weight_any)) : std::nullopt;
  with_type(patches.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* weights = weight ? read<T>(*weight) : nullptr;
    const int64_t rows = w.shape.n[1], n = w.shape.n[2];
    for_each_task((w.C + 1) * w.shape.n[0], [&](int64_t task) {  // the last channel is the totals
      const int64_t c = task / w.shape.n[0], i = task % w.shape.n[0];
      if (w.over[i].empty()) return;
      for (int64_t j = 0; j < rows; ++j) {
        T* sum = c < w.C ? write<T>(sums) + (task * rows + j) * n : nullptr;
        T* total = c < w.C ? nullptr : write<T>(totals) + (i * rows + j) * n;
        add_row(w, read<T>(patches), weights, c, i, j, sum, total);
      }
    });
  });
}

}  // namespace
}  // namespace cmrfast::cpu

STABLE_TORCH_LIBRARY_IMPL(cmrfast, CPU, m) {
  m.impl("merge_patches", TORCH_BOX(&cmrfast::cpu::merge_patches));
  m.impl("merge_add", TORCH_BOX(&cmrfast::cpu::merge_add));
}

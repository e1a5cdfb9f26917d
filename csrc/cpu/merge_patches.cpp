// Weighted mean of overlapping patches, gathered: some rows of a plane add what covers them.
//
// A task makes a band of rows of one plane, which stays in cache while its patches are added in
// patch order, long runs of each at a time: nothing is written twice and bits do not depend on
// threads. Least bytes: every patch once, the volume once.
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

constexpr int64_t kRows = 32;  // of a band

struct Band {
  int64_t i, begin, end;  // rows [begin, end) of plane i
};

struct Bands {
  int64_t per_plane, rows, count;
  explicit Bands(const Box& shape)
      : per_plane((shape.n[1] + kRows - 1) / kRows),
        rows(shape.n[1]),
        count(shape.n[0] * per_plane) {}
  Band operator[](int64_t task) const {
    const int64_t begin = task % per_plane * kRows;
    return {task / per_plane, begin, std::min(rows, begin + kRows)};
  }
};

// Calls add(run in the patches of channel c, run in the weights, run in the band, length) for
// every run of a patch's row that lies on the band.
template <class Add>
void for_each_run(const Patches& w, int64_t c, const Band& band, const Add& add) {
  for (const int64_t p : w.over[band.i]) {
    const int64_t* at = w.start.data() + 3 * p;
    const Inside j(at[1], w.size.n[1], w.shape.n[1]), k(at[2], w.size.n[2], w.shape.n[2]);
    if (k.begin == k.end || j.begin == j.end) continue;
    const int64_t patch = (p * w.C + c) * w.size.volume();
    const int64_t end = std::min(band.end, at[1] + j.end);
    for (int64_t row = std::max(band.begin, at[1] + j.begin); row < end; ++row) {
      const int64_t offset =
          ((band.i - at[0]) * w.size.n[1] + (row - at[1])) * w.size.n[2] + k.begin;
      add(patch + offset, offset, (row - band.begin) * w.shape.n[2] + at[2] + k.begin,
          k.end - k.begin);
    }
  }
}

template <class T>
void add_values(const Patches& w, const T* patches, const T* weights, int64_t c, const Band& band,
                T* sums) {
  for_each_run(w, c, band, [&](int64_t from, int64_t weight, int64_t to, int64_t n) {
    const T* values = patches + from;
    T* sum = sums + to;
    if (weights == nullptr) {
      for (int64_t o = 0; o < n; ++o) sum[o] += values[o];
    } else {
      for (int64_t o = 0; o < n; ++o) sum[o] += weights[weight + o] * values[o];
    }
  });
}

template <class T>
void add_weights(const Patches& w, const T* weights, const Band& band, T* totals) {
  for_each_run(w, 0, band, [&](int64_t, int64_t weight, int64_t to, int64_t n) {
    T* total = totals + to;
    if (weights == nullptr) {
      for (int64_t o = 0; o < n; ++o) total[o] += 1;
    } else {
      for (int64_t o = 0; o < n; ++o) total[o] += weights[weight + o];
    }
  });
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
    const Bands bands(w.shape);
    const int64_t n = w.shape.n[2], plane = w.shape.n[1] * n;
    torch::stable::parallel_for(0, bands.count, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> totals(static_cast<size_t>(kRows * n));
      for (int64_t task = begin; task < end; ++task) {
        const Band band = bands[task];
        const int64_t voxels = (band.end - band.begin) * n;
        std::fill_n(totals.data(), voxels, T{0});
        add_weights(w, weights, band, totals.data());
        for (int64_t c = 0; c < w.C; ++c) {
          T* sums = write<T>(out) + (c * w.shape.n[0] + band.i) * plane + band.begin * n;
          std::fill_n(sums, voxels, T{0});
          add_values(w, read<T>(patches), weights, c, band, sums);
          for (int64_t x = 0; x < voxels; ++x) {
            const T mean = sums[x] / totals[x];
            sums[x] = totals[x] > 0 ? mean : static_cast<T>(fill);
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
    const Bands bands(w.shape);
    const int64_t n = w.shape.n[2], plane = w.shape.n[1] * n;
    for_each_task(bands.count, [&](int64_t task) {
      const Band band = bands[task];
      const int64_t at = band.i * plane + band.begin * n;
      add_weights(w, weights, band, write<T>(totals) + at);
      for (int64_t c = 0; c < w.C; ++c) {
        T* sum = write<T>(sums) + c * w.shape.n[0] * plane + at;
        add_values(w, read<T>(patches), weights, c, band, sum);
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

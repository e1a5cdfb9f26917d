// Weighted mean of overlapping patches, as a gather: each row adds the patches that cover it.
//
// A task owns a block of rows of one plane, which stays in cache while the patches are added in
// order, a run of voxels at a time. No two tasks write one voxel, so the result does not depend on
// the number of threads. Minimum traffic: every patch once, the volume once.
#include <vector>

#include "common.h"

namespace cmrfast::cpu {
namespace {

struct Patches {
  int64_t P, C, dims;
  Box size, shape;
  std::vector<int64_t> start;                  // (P, 3)
  std::vector<std::vector<int32_t>> on_plane;  // the patches that cover each plane, in order

  Patches(const Tensor& patches, const Tensor& start_vox, Box shape)
      : P(patches.size(0)), C(patches.size(1)), dims(start_vox.size(1)), shape(shape) {
    STD_TORCH_CHECK(start_vox.scalar_type() == ScalarType::Long && start_vox.size(0) == P &&
                        patches.dim() == dims + 2,
                    "merge_patches: patches and start_vox do not fit one another");
    size = box_of(patches.sizes().data() + 2, dims);
    start.resize(static_cast<size_t>(P * 3));
    on_plane.resize(static_cast<size_t>(shape.n[0]));
    for (int64_t p = 0; p < P; ++p) {
      int64_t* at = start.data() + 3 * p;
      window_start(read<int64_t>(start_vox), p, dims, at);
      const Inside i(at[0], size.n[0], shape.n[0]);
      for (int64_t o = i.begin; o < i.end; ++o)
        on_plane[at[0] + o].push_back(static_cast<int32_t>(p));
    }
  }
};

constexpr int64_t kRows = 32;  // of a block

struct RowBlock {
  int64_t i, begin, end;  // rows [begin, end) of plane i
};

struct RowBlocks {
  int64_t per_plane, rows, count;
  explicit RowBlocks(const Box& shape)
      : per_plane((shape.n[1] + kRows - 1) / kRows),
        rows(shape.n[1]),
        count(shape.n[0] * per_plane) {}
  RowBlock operator[](int64_t task) const {
    const int64_t begin = task % per_plane * kRows;
    return {task / per_plane, begin, std::min(rows, begin + kRows)};
  }
};

// Calls add(patch offset, weight offset, block offset, length) for every run of voxels that a row
// of a patch has in common with the block, for channel c.
template <class Add>
void for_each_run(const Patches& w, int64_t c, const RowBlock& block, const Add& add) {
  for (const int64_t p : w.on_plane[block.i]) {
    const int64_t* start = w.start.data() + 3 * p;
    const Inside j(start[1], w.size.n[1], w.shape.n[1]);
    const Inside k(start[2], w.size.n[2], w.shape.n[2]);
    if (k.begin == k.end || j.begin == j.end) continue;
    const int64_t patch = (p * w.C + c) * w.size.voxels();
    const int64_t end = std::min(block.end, start[1] + j.end);
    for (int64_t row = std::max(block.begin, start[1] + j.begin); row < end; ++row) {
      const int64_t offset =
          ((block.i - start[0]) * w.size.n[1] + (row - start[1])) * w.size.n[2] + k.begin;
      add(patch + offset, offset, (row - block.begin) * w.shape.n[2] + start[2] + k.begin,
          k.end - k.begin);
    }
  }
}

template <class T>
void add_values(const Patches& w, const T* patches, const T* weights, int64_t c,
                const RowBlock& block, T* sums) {
  for_each_run(w, c, block, [&](int64_t from, int64_t weight, int64_t to, int64_t n) {
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
void add_weights(const Patches& w, const T* weights, const RowBlock& block, T* totals) {
  for_each_run(w, 0, block, [&](int64_t, int64_t weight, int64_t to, int64_t n) {
    T* total = totals + to;
    if (weights == nullptr) {
      for (int64_t o = 0; o < n; ++o) total[o] += 1;
    } else {
      for (int64_t o = 0; o < n; ++o) total[o] += weights[weight + o];
    }
  });
}

// Calls body(T{}, patches, values, weights) with what both ops read.
template <class Body>
void with_patches(const Tensor& patches_any, const Tensor& start_any,
                  const std::optional<Tensor>& weight_any, Box shape, const Body& body) {
  const Tensor patches = torch::stable::contiguous(patches_any);
  const Tensor start = torch::stable::contiguous(start_any);
  const std::optional<Tensor> weight = contiguous(weight_any);
  const Patches w(patches, start, shape);
  STD_TORCH_CHECK(!weight || (weight->scalar_type() == patches.scalar_type() &&
                              weight->numel() == w.size.voxels()),
                  "merge_patches: patches and weight do not fit one another");
  with_real("merge_patches: patches", patches.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    body(zero, w, read<T>(patches), weight ? read<T>(*weight) : nullptr);
  });
}

Tensor merge_patches(const Tensor& patches, const Tensor& start,
                     const std::optional<Tensor>& weight,
                     torch::headeronly::IntHeaderOnlyArrayRef shape, double fill) {
  Tensor out = fresh(patches, concat({patches.size(1)}, shape), patches.scalar_type());
  const Box box = box_of(shape.data(), static_cast<int64_t>(shape.size()));
  const auto run = [&](auto zero, const Patches& w, const auto* values, const auto* weights) {
    using T = decltype(zero);
    const RowBlocks blocks(w.shape);
    const int64_t n = w.shape.n[2], plane = w.shape.n[1] * n;
    torch::stable::parallel_for(0, blocks.count, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> totals(static_cast<size_t>(kRows * n));
      for (int64_t task = begin; task < end; ++task) {
        const RowBlock block = blocks[task];
        const int64_t voxels = (block.end - block.begin) * n;
        std::fill_n(totals.data(), voxels, T{0});
        add_weights(w, weights, block, totals.data());
        for (int64_t c = 0; c < w.C; ++c) {
          T* sums = write<T>(out) + (c * w.shape.n[0] + block.i) * plane + block.begin * n;
          std::fill_n(sums, voxels, T{0});
          add_values(w, values, weights, c, block, sums);
          for (int64_t x = 0; x < voxels; ++x) {
            const T mean = sums[x] / totals[x];
            sums[x] = totals[x] > 0 ? mean : static_cast<T>(fill);
          }
        }
      }
    });
  };
  with_patches(patches, start, weight, box, run);
  return out;
}

void merge_add(Tensor& sums, Tensor& totals, const Tensor& patches, const Tensor& start,
               const std::optional<Tensor>& weight) {
  const Box box = box_of(totals.sizes().data(), totals.dim());
  const auto run = [&](auto zero, const Patches& w, const auto* values, const auto* weights) {
    using T = decltype(zero);
    STD_TORCH_CHECK(sums.is_contiguous() && totals.is_contiguous() &&
                        sums.scalar_type() == patches.scalar_type() &&
                        totals.scalar_type() == patches.scalar_type() &&
                        sums.numel() == w.C * totals.numel(),
                    "merge_add: sums and totals do not fit the patches");
    const RowBlocks blocks(w.shape);
    const int64_t n = w.shape.n[2], plane = w.shape.n[1] * n;
    for_each_task(blocks.count, [&](int64_t task) {
      const RowBlock block = blocks[task];
      const int64_t offset = block.i * plane + block.begin * n;
      add_weights(w, weights, block, write<T>(totals) + offset);
      for (int64_t c = 0; c < w.C; ++c) {
        T* sum = write<T>(sums) + c * w.shape.n[0] * plane + offset;
        add_values(w, values, weights, c, block, sum);
      }
    });
  };
  with_patches(patches, start, weight, box, run);
}

}  // namespace
}  // namespace cmrfast::cpu

STABLE_TORCH_LIBRARY_IMPL(cmrfast, CPU, m) {
  m.impl("merge_patches", TORCH_BOX(&cmrfast::cpu::merge_patches));
  m.impl("merge_add", TORCH_BOX(&cmrfast::cpu::merge_add));
}

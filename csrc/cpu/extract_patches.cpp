// Patches out of packed volumes: cut, flipped, normalised and cast in one pass.
//
// A task writes one channel of one patch, row by row: the part inside the volume is one converted
// run, the rest is fill. Minimum traffic: each voxel of the patches is read once and written once.
#include <vector>

#include "crop.h"

namespace cmrfast::cpu {
namespace {

// Whether each axis of patch p is mirrored; an empty `flips` (P, dims) mirrors none.
struct Flip {
  bool axis[3] = {};
  Flip(const Tensor& flips, int64_t p, int64_t dims) {
    if (flips.numel() == 0) return;
    for (int64_t a = 0; a < dims; ++a) axis[3 - dims + a] = read<bool>(flips)[p * dims + a];
  }
  bool operator[](int a) const { return axis[a]; }
};

bool empty_or(const Tensor& tensor, int64_t n) {
  return tensor.numel() == 0 || tensor.numel() == n;
}

void extract_patches_into(const Tensor& buffer_any, const Tensor& table_any,
                          torch::headeronly::IntHeaderOnlyArrayRef shape, const Tensor& start_any,
                          const Tensor& index_any, const Tensor& flips_any, const Tensor& shift_any,
                          const Tensor& scale_any, double fill, Tensor& out) {
  const Tensor buffer = torch::stable::contiguous(buffer_any);
  const Tensor table = torch::stable::contiguous(table_any);
  const Tensor start = torch::stable::contiguous(start_any);
  const Tensor index = torch::stable::contiguous(index_any);
  const Tensor flips = torch::stable::contiguous(flips_any);
  const Tensor shift = torch::stable::contiguous(shift_any);
  const Tensor scale = torch::stable::contiguous(scale_any);
  require_all_long("extract_patches", {&table, &start, &index});
  require_all_double("extract_patches", {&shift, &scale});
  STD_TORCH_CHECK(out.dim() == start.size(1) + 2 && out.is_contiguous(),
                  "extract_patches: out must be contiguous, (P, C, *size)");
  const int64_t P = start.size(0), channels = out.size(1);
  const Volumes volumes = volumes_of(table, shape, channels, buffer.numel());
  const Box window = box_of(out.sizes().data() + 2, volumes.dims);
  STD_TORCH_CHECK(start.size(1) == volumes.dims && out.size(0) == P && empty_or(index, P) &&
                      empty_or(flips, P * volumes.dims) && empty_or(shift, volumes.V * channels) &&
                      empty_or(scale, volumes.V * channels),
                  "extract_patches: arguments do not fit one another");
  const auto source = static_cast<const char*>(buffer.const_data_ptr());
  const Conversion conversion(buffer.scalar_type(), out.scalar_type(), fill);
  for_each_task(P * channels, [&](int64_t task) {
    const int64_t p = task / channels, c = task % channels;
    const int64_t v = index.numel() == 0 ? 0 : read<int64_t>(index)[p];
    char* to =
        static_cast<char*>(out.mutable_data_ptr()) + task * window.voxels() * conversion.to_bytes;
    const Volume volume(volumes, v);
    if (!volume.valid) {
      conversion.fill(to, window.voxels());
      return;
    }
    const Flip flip(flips, p, volumes.dims);
    Crop crop{volume.shape, window, {}, {flip[0], flip[1], flip[2]}};
    window_start(read<int64_t>(start), p, volumes.dims, crop.start);
    const double minus = shift.numel() == 0 ? 0 : read<double>(shift)[v * channels + c];
    const double times = scale.numel() == 0 ? 1 : read<double>(scale)[v * channels + c];
    const int64_t base = volume.offset + c * volume.shape.voxels();
    crop_rows(crop, source + base * conversion.from_bytes, conversion, minus, times, 0,
              window.n[0] * window.n[1], to);
  });
}

Tensor extract_patches(const Tensor& buffer, const Tensor& table,
                       torch::headeronly::IntHeaderOnlyArrayRef shape, const Tensor& start,
                       const Tensor& index, const Tensor& flips, const Tensor& shift,
                       const Tensor& scale, int64_t channels,
                       torch::headeronly::IntHeaderOnlyArrayRef size, double fill,
                       ScalarType dtype) {
  Tensor out = fresh(buffer, concat({start.size(0), channels}, size), dtype);
  extract_patches_into(buffer, table, shape, start, index, flips, shift, scale, fill, out);
  return out;
}

// The adjoint: a task owns some planes of one channel of one volume and adds to them the gradients
// of the patches that were cut from there, patch after patch.
Tensor extract_patches_backward(const Tensor& grad_any, const Tensor& table_any,
                                torch::headeronly::IntHeaderOnlyArrayRef volume_shape,
                                const Tensor& start_any, const Tensor& index_any,
                                const Tensor& flips_any, const Tensor& scale_any, int64_t numel) {
  constexpr int64_t slab = 8;
  const Tensor grad = torch::stable::contiguous(grad_any);
  const Tensor table = torch::stable::contiguous(table_any);
  const int64_t P = grad.size(0), C = grad.size(1);
  const Tensor start = torch::stable::contiguous(start_any);
  const Tensor index = torch::stable::contiguous(index_any);
  const Tensor flips = torch::stable::contiguous(flips_any);
  const Tensor scale = torch::stable::contiguous(scale_any);
  require_all_long("extract_patches_backward", {&table, &start, &index});
  require_all_double("extract_patches_backward", {&scale});
  const Volumes volumes = volumes_of(table, volume_shape, C, numel);
  STD_TORCH_CHECK(grad.dim() == volumes.dims + 2 && start.size(0) == P &&
                      start.size(1) == volumes.dims && empty_or(index, P) &&
                      empty_or(flips, P * volumes.dims) && empty_or(scale, volumes.V * C),
                  "extract_patches_backward: arguments do not fit one another");
  const Box window = box_of(grad.sizes().data() + 2, volumes.dims);
  Tensor out = torch::stable::new_zeros(grad, {numel});
  struct Task {
    int64_t v, c, begin, end;
  };
  std::vector<Task> tasks;
  for (int64_t v = 0; v < volumes.V; ++v) {
    const Volume volume(volumes, v);
    if (!volume.valid) continue;
    const int64_t planes = volume.shape.n[0];
    for (int64_t c = 0; c < C; ++c) {
      for (int64_t i = 0; i < planes; i += slab) {
        tasks.push_back({v, c, i, std::min(planes, i + slab)});
      }
    }
  }
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    for_each_task(static_cast<int64_t>(tasks.size()), [&](int64_t task) {
      const auto [v, c, begin, end] = tasks[task];
      const Volume volume(volumes, v);
      const Box shape = volume.shape;
      T* target = write<T>(out) + volume.offset + c * shape.voxels();
      const T times = scale.numel() == 0 ? T{1} : static_cast<T>(read<double>(scale)[v * C + c]);
      for (int64_t p = 0; p < P; ++p) {
        if ((index.numel() == 0 ? 0 : read<int64_t>(index)[p]) != v) continue;
        int64_t at[3];
        window_start(read<int64_t>(start), p, volumes.dims, at);
        const Inside i(at[0], window.n[0], shape.n[0]), j(at[1], window.n[1], shape.n[1]);
        const Inside k(at[2], window.n[2], shape.n[2]);
        const Flip flip(flips, p, volumes.dims);
        const T* patch = read<T>(grad) + (p * C + c) * window.voxels();
        for (int64_t oi = i.begin; oi < i.end; ++oi) {
          if (at[0] + oi < begin || at[0] + oi >= end) continue;
          const int64_t pi = flip[0] ? window.n[0] - 1 - oi : oi;
          for (int64_t oj = j.begin; oj < j.end; ++oj) {
            const int64_t pj = flip[1] ? window.n[1] - 1 - oj : oj;
            T* to = target + ((at[0] + oi) * shape.n[1] + at[1] + oj) * shape.n[2] + at[2];
            const T* from = patch + (pi * window.n[1] + pj) * window.n[2];
            if (flip[2]) {
              const T* last = from + window.n[2] - 1;
              for (int64_t o = k.begin; o < k.end; ++o) to[o] += times * last[-o];
            } else {
              for (int64_t o = k.begin; o < k.end; ++o) to[o] += times * from[o];
            }
          }
        }
      }
    });
  };
  with_real("extract_patches_backward: grad", grad.scalar_type(), run);
  return out;
}

}  // namespace

}  // namespace cmrfast::cpu

STABLE_TORCH_LIBRARY_IMPL(cmrfast, CPU, m) {
  m.impl("extract_patches", TORCH_BOX(&cmrfast::cpu::extract_patches));
  m.impl("extract_patches_into", TORCH_BOX(&cmrfast::cpu::extract_patches_into));
  m.impl("extract_patches_backward", TORCH_BOX(&cmrfast::cpu::extract_patches_backward));
}

// Patches sampled from packed volumes along any axes: extraction and affine sampling in one pass.
//
// A task writes some rows of all channels of one patch. Along a row, positions are base + k * step
// in double: outside the range that reaches the volume there is fill, inside the range whose taps
// are all inside nothing is checked, and the few voxels in between are checked one by one. Patches
// that lie on the volume's own grid are cropped or copied, which is exact. Minimum traffic: each
// voxel of the patches is written once, its taps come from the caches.
#include <vector>

#include "interpolate.h"

namespace cmrfast::cpu {
namespace {

// A task has the rows of a tile of these sizes along the first two axes, which read voxels close to
// one another; of two axes, the first has size one.
constexpr int64_t kTile0 = 16, kTile1 = 8;

// The rows [begin, end) of each channel, written from `to` on, `channel_bytes` apart.
template <class Real, int DIMS, int TAPS>
void interpolate_rows(const Source<DIMS>& source, const Reader<Real, DIMS>& reader,
                      const Conversion& conversion, int64_t begin, int64_t end,
                      int64_t channel_bytes, char* to) {
  const Patch<DIMS>& patch = source.patch;
  const int64_t count = patch.size[DIMS - 1], padded = count + kBlock, ahead = patch.ahead();
  const Real fill = static_cast<Real>(source.fill);
  std::vector<Real> values(static_cast<size_t>(source.C * padded));
  for (int64_t row = begin; row < end; ++row, to += count * conversion.to_bytes) {
    const Line<DIMS> line = patch.line(row);
    const Range reached = reaching<TAPS>(line, patch.zero, patch.n, count, false);
    Range inside = reaching<TAPS>(line, patch.zero, patch.n, count, true);
    if (inside.begin >= inside.end) inside = {reached.begin, reached.begin};
    const auto checked = [&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k) {
        const Checked<Real, DIMS, TAPS> taps(line, k);
        for (int64_t c = 0; c < source.C; ++c) {
          values[c * padded + k] = taps.value(source, reader.voxel, c);
        }
      }
    };
    checked(reached.begin, inside.begin);
    for_each_block<Real, TAPS>(patch, line, inside, [&](int64_t k, const auto& block) {
      for (int64_t c = 0; c < source.C; ++c) {
        reader.block(source.image(c), patch, block, ahead, source.template minus<Real>(c),
                     source.template times<Real>(c), values.data() + c * padded + k);
      }
    });
    checked(inside.end, reached.end);
    for (int64_t c = 0; c < source.C; ++c) {
      Real* row_values = values.data() + c * padded;
      std::fill(row_values, row_values + reached.begin, fill);
      std::fill(row_values + reached.end, row_values + count, fill);
      conversion.convert(row_values, to + c * channel_bytes, count, 1, 0, 1);
    }
  }
}

// The same with the nearest voxels, which are converted as they are; `Bits` has their size.
template <class Bits, int DIMS>
void nearest_rows(const Source<DIMS>& source, const Conversion& conversion, int64_t begin,
                  int64_t end, int64_t channel_bytes, char* to) {
  const Patch<DIMS>& patch = source.patch;
  const int64_t count = patch.size[DIMS - 1], to_bytes = conversion.to_bytes;
  const int64_t ahead = patch.ahead() * conversion.from_bytes;
  for (int64_t row = begin; row < end; ++row, to += count * to_bytes) {
    const Line<DIMS> line = patch.line(row);
    const Range inside = reaching<1>(line, patch.zero, patch.n, count, true);
    for (int64_t c = 0; c < source.C; ++c) {
      char* out = to + c * channel_bytes;
      conversion.fill(out, inside.begin);
      conversion.fill(out + inside.end * to_bytes, count - inside.end);
    }
    for_each_block<float, 1>(patch, line, inside, [&](int64_t k, const auto& block) {
      for (int64_t c = 0; c < source.C; ++c) {
        const Bits* image = reinterpret_cast<const Bits*>(source.image(c));
        Bits voxels[kBlock];
        for (int64_t b = 0; b < block.count; ++b) {
          const Bits* at = image + block.index[b];
          if (b % 4 == 0) prefetch(at, ahead, 1);
          voxels[b] = *at;
        }
        conversion.convert(voxels, to + c * channel_bytes + k * to_bytes, block.count, 1,
                           source.template minus<double>(c), source.template times<double>(c));
      }
    });
  }
}

template <int DIMS>
void nearest_rows(const Source<DIMS>& source, const Conversion& conversion, int64_t begin,
                  int64_t end, int64_t channel_bytes, char* to) {
  const auto run = [&]<class Bits>() {
    nearest_rows<Bits>(source, conversion, begin, end, channel_bytes, to);
  };
  if (conversion.from_bytes == 1) run.template operator()<uint8_t>();
  if (conversion.from_bytes == 2) run.template operator()<uint16_t>();
  if (conversion.from_bytes == 4) run.template operator()<uint32_t>();
  if (conversion.from_bytes == 8) run.template operator()<uint64_t>();
}

// Where the patches of a call are: which volume each samples, and how.
struct Poses {
  int64_t P;
  Box window;
  Volumes volumes;
  std::vector<double> centers, matrices;
  Tensor index;

  Poses(const Tensor& center, const Tensor& matrix, const Tensor& index_any, const Volumes& volumes,
        const int64_t* size)
      : P(center.size(0)),
        window(box_of(size, volumes.dims)),
        volumes(volumes),
        centers(doubles(center)),
        matrices(doubles(matrix)),
        index(torch::stable::contiguous(index_any)) {
    require_all_long("sample_patches", {&this->index});
    const int64_t dims = volumes.dims;
    STD_TORCH_CHECK((dims == 2 || dims == 3) && center.numel() == P * dims &&
                        matrix.numel() == P * dims * dims &&
                        (index.numel() == 0 || index.numel() == P),
                    "sample_patches: arguments do not fit one another");
  }

  int64_t volume_of(int64_t p) const { return index.numel() == 0 ? 0 : read<int64_t>(index)[p]; }

  template <int DIMS>
  Patch<DIMS> patch(int64_t p, const Volume& volume) const {
    return {volume, window, centers.data() + p * DIMS, matrices.data() + p * DIMS * DIMS};
  }

 private:
  static std::vector<double> doubles(const Tensor& any) {
    const Tensor tensor = torch::stable::contiguous(any);
    std::vector<double> values(static_cast<size_t>(tensor.numel()));
    with_real("sample_patches: center_vox and matrix", tensor.scalar_type(), [&](auto zero) {
      std::copy_n(read<decltype(zero)>(tensor), tensor.numel(), values.begin());
    });
    return values;
  }
};

template <class Real, int DIMS, int TAPS>
void sample(const Poses& poses, const Tensor& buffer, const Tensor& shift, const Tensor& scale,
            bool nearest, double fill, Tensor& out) {
  const Conversion copied(buffer.scalar_type(), out.scalar_type(), fill);
  const Conversion computed(std::is_same_v<Real, double> ? ScalarType::Double : ScalarType::Float,
                            out.scalar_type(), fill);
  const auto reader = reader_of<Real, DIMS, TAPS>(buffer.scalar_type());
  const Box window = poses.window;
  const int64_t C = poses.volumes.C, row_bytes = window.n[2] * copied.to_bytes;
  const int64_t out_channel = window.n[0] * window.n[1] * row_bytes;
  const int64_t tiles0 = (window.n[0] + kTile0 - 1) / kTile0;
  const int64_t tiles1 = (window.n[1] + kTile1 - 1) / kTile1;
  const char* voxels = static_cast<const char*>(buffer.const_data_ptr());
  char* patches = static_cast<char*>(out.mutable_data_ptr());
  for_each_task(poses.P * tiles0 * tiles1, [&](int64_t task) {
    const int64_t p = task / (tiles0 * tiles1), v = poses.volume_of(p);
    const int64_t first0 = task / tiles1 % tiles0 * kTile0, first1 = task % tiles1 * kTile1;
    const int64_t end0 = std::min(window.n[0], first0 + kTile0);
    const int64_t count1 = std::min(window.n[1] - first1, kTile1);
    // Calls body(begin, end, to) for the rows of the tile, and where these are in the output.
    const auto each_rows = [&](const auto& body) {
      for (int64_t i = first0; i < end0; ++i) {
        const int64_t begin = i * window.n[1] + first1;
        body(begin, begin + count1, patches + p * C * out_channel + begin * row_bytes);
      }
    };
    const Volume volume(poses.volumes, v);
    if (!volume.valid) {
      each_rows([&](int64_t begin, int64_t end, char* to) {
        for (int64_t c = 0; c < C; ++c) {
          copied.fill(to + c * out_channel, (end - begin) * window.n[2]);
        }
      });
      return;
    }
    const Patch<DIMS> patch = poses.patch<DIMS>(p, volume);
    const Source<DIMS> source{patch,
                              voxels + volume.offset * copied.from_bytes,
                              C,
                              volume.shape.voxels() * copied.from_bytes,
                              shift.numel() == 0 ? nullptr : read<double>(shift) + v * C,
                              scale.numel() == 0 ? nullptr : read<double>(scale) + v * C,
                              fill};
    const bool on_grid = patch.on_grid();
    Crop crop{volume.shape, window, {}, {}};
    const bool cropped = on_grid && patch.is_crop(crop);
    each_rows([&](int64_t begin, int64_t end, char* to) {
      if (cropped) {
        for (int64_t c = 0; c < C; ++c) {
          crop_rows(crop, source.image(c), copied, source.template minus<double>(c),
                    source.template times<double>(c), begin, end, to + c * out_channel);
        }
      } else if (nearest || on_grid) {
        nearest_rows(source, copied, begin, end, out_channel, to);
      } else {
        interpolate_rows<Real, DIMS, TAPS>(source, reader, computed, begin, end, out_channel, to);
      }
    });
  });
}

Tensor sample_patches(const Tensor& buffer_any, const Tensor& table_any,
                      torch::headeronly::IntHeaderOnlyArrayRef shape, const Tensor& center,
                      const Tensor& matrix, const Tensor& index, const Tensor& shift_any,
                      const Tensor& scale_any, int64_t channels,
                      torch::headeronly::IntHeaderOnlyArrayRef size, int64_t mode, double fill,
                      ScalarType dtype) {
  const Tensor buffer = torch::stable::contiguous(buffer_any);
  const Tensor table = torch::stable::contiguous(table_any);
  const Tensor shift = torch::stable::contiguous(shift_any);
  const Tensor scale = torch::stable::contiguous(scale_any);
  require_all_long("sample_patches", {&table});
  require_all_double("sample_patches", {&shift, &scale});
  const Volumes volumes = volumes_of(table, shape, channels, buffer.numel());
  const Poses poses(center, matrix, index, volumes, size.data());
  const int64_t numbers = volumes.V * channels;
  STD_TORCH_CHECK((shift.numel() == 0 || shift.numel() == numbers) &&
                      (scale.numel() == 0 || scale.numel() == numbers),
                  "sample_patches: shift and scale do not fit the volumes");
  Tensor out = fresh(buffer, concat({poses.P, channels}, size), dtype);
  const auto run = [&]<class Real, int DIMS>() {
    const auto option = static_cast<Mode>(mode);
    option == Mode::kCubic
        ? sample<Real, DIMS, 4>(poses, buffer, shift, scale, false, fill, out)
        : sample<Real, DIMS, 2>(poses, buffer, shift, scale, option == Mode::kNearestUp, fill, out);
  };
  const bool in_double = Conversion(buffer.scalar_type(), dtype, fill).in_double();
  if (volumes.dims == 2) {
    in_double ? run.template operator()<double, 2>() : run.template operator()<float, 2>();
  } else {
    in_double ? run.template operator()<double, 3>() : run.template operator()<float, 3>();
  }
  return out;
}

// The adjoint: a task owns some planes of all channels of one volume and adds to them what the
// voxels of the patches that sample it give them, patch after patch.
template <class T, int DIMS, int TAPS>
void scatter(const Poses& poses, const Tensor& grad, const Tensor& scale, Tensor& out) {
  constexpr int64_t slab = 8;
  struct Task {
    int64_t v, begin, end;
  };
  std::vector<Task> tasks;
  for (int64_t v = 0; v < poses.volumes.V; ++v) {
    const Volume volume(poses.volumes, v);
    const int64_t planes = volume.valid ? volume.shape.n[3 - DIMS] : 0;
    for (int64_t i = 0; i < planes; i += slab) tasks.push_back({v, i, std::min(planes, i + slab)});
  }
  const Box window = poses.window;
  const int64_t C = poses.volumes.C, count = window.n[2], rows = window.n[0] * window.n[1];
  for_each_task(static_cast<int64_t>(tasks.size()), [&](int64_t number) {
    const auto [v, first_plane, end_plane] = tasks[number];
    const Volume volume(poses.volumes, v);
    const int64_t channel = volume.shape.voxels();
    T* target = write<T>(out) + volume.offset;
    std::vector<T> times(static_cast<size_t>(C), T{1});
    if (scale.numel() != 0) std::copy_n(read<double>(scale) + v * C, C, times.begin());
    for (int64_t p = 0; p < poses.P; ++p) {
      if (poses.volume_of(p) != v) continue;
      const Patch<DIMS> patch = poses.patch<DIMS>(p, volume);
      int64_t begin[DIMS] = {}, end[DIMS];
      std::copy_n(patch.n, DIMS, end);
      begin[0] = first_plane, end[0] = end_plane;
      for (int64_t row = 0; row < rows; ++row) {
        const Line<DIMS> line = patch.line(row);
        const T* from = read<T>(grad) + (p * C * rows + row) * count;
        const Range reached = reaching<TAPS>(line, begin, end, count, false);
        for (int64_t k = reached.begin; k < reached.end; ++k) {
          Checked<T, DIMS, TAPS>(line, k).each(patch, begin, end, [&](int64_t at, T weight) {
            for (int64_t c = 0; at >= 0 && c < C; ++c) {
              target[c * channel + at] += weight * (from[c * rows * count + k] * times[c]);
            }
          });
        }
      }
    }
  });
}

Tensor sample_patches_backward(const Tensor& grad_any, const Tensor& table_any,
                               torch::headeronly::IntHeaderOnlyArrayRef volume_shape,
                               const Tensor& center, const Tensor& matrix, const Tensor& index,
                               const Tensor& scale_any, int64_t numel, int64_t mode) {
  const Tensor grad = torch::stable::contiguous(grad_any);
  const Tensor table = torch::stable::contiguous(table_any);
  const Tensor scale = torch::stable::contiguous(scale_any);
  require_all_long("sample_patches_backward", {&table});
  require_all_double("sample_patches_backward", {&scale});
  const Volumes volumes = volumes_of(table, volume_shape, grad.size(1), numel);
  const Poses poses(center, matrix, index, volumes, grad.sizes().data() + 2);
  STD_TORCH_CHECK(
      poses.P == grad.size(0) && (scale.numel() == 0 || scale.numel() == volumes.V * volumes.C),
      "sample_patches_backward: arguments do not fit one another");
  Tensor out = torch::stable::new_zeros(grad, {numel});
  with_real("sample_patches_backward: grad", grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&]<int DIMS>() {
      const auto option = static_cast<Mode>(mode);
      if (option == Mode::kLinear) scatter<T, DIMS, 2>(poses, grad, scale, out);
      if (option == Mode::kNearestUp) scatter<T, DIMS, 1>(poses, grad, scale, out);
      if (option == Mode::kCubic) scatter<T, DIMS, 4>(poses, grad, scale, out);
    };
    volumes.dims == 2 ? run.template operator()<2>() : run.template operator()<3>();
  });
  return out;
}

}  // namespace
}  // namespace cmrfast::cpu

STABLE_TORCH_LIBRARY_IMPL(cmrfast, CPU, m) {
  m.impl("sample_patches", TORCH_BOX(&cmrfast::cpu::sample_patches));
  m.impl("sample_patches_backward", TORCH_BOX(&cmrfast::cpu::sample_patches_backward));
}

// Sampling at affine coordinates, row by row, without a grid in memory.
//
// Along an output row each coordinate is base + k * step. The stretch of k whose taps all lie
// inside is solved for once a row and runs in blocks without any check; what is left of the row
// takes one careful voxel after another. Within a block coordinates are float offsets from a base
// in double. Least bytes: images and output once; eight (four) taps a voxel come from the caches.
#include <cmath>
#include <limits>
#include <vector>

#include "sampling.h"

namespace cmrfast::cpu {
namespace {

template <class T, class Index, int DIMS>
void linear_block(const Row<DIMS>& row, int64_t k0, int64_t n, Taps<T, Index>& taps) {
  Index* index = taps.index;
  for (int64_t k = 0; k < n; ++k) index[k] = 0;
  for (int a = 0; a < DIMS; ++a) {
    const double base = row.base[a] + static_cast<double>(k0) * row.step[a];
    const double whole = std::floor(base);
    const T rest = static_cast<T>(base - whole), step = static_cast<T>(row.step[a]);
    const auto low = static_cast<int32_t>(-whole), high = static_cast<int32_t>(row.n[a] - 2) + low;
    const Index stride = static_cast<Index>(row.stride[a]);
    const auto first = static_cast<Index>(whole);
    T* fraction = taps.fraction[a];
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) {
      const T t = rest + static_cast<T>(static_cast<int32_t>(k)) * step;
      int32_t cell = static_cast<int32_t>(std::floor(t));
      cell = cell < low ? low : cell;  // rounding may step over the border, memory never
      cell = cell > high ? high : cell;
      fraction[k] = t - static_cast<T>(cell);
      index[k] += (first + cell) * stride;
    }
  }
}

template <class T, class Index, int DIMS>
void blend_block(const T* image, const Row<DIMS>& row, int64_t n, const Taps<T, Index>& taps,
                 T* out) {
  const T *fx = taps.fraction[DIMS - 1], *fy = taps.fraction[DIMS - 2];
  for (int64_t k = 0; k < n; ++k) {
    const T* at = image + taps.index[k];
    auto value = blend(load_pair(at), load_pair(at + row.stride[DIMS - 2]), fy[k]);
    if constexpr (DIMS == 3) {
      at += row.stride[0];
      const auto back = blend(load_pair(at), load_pair(at + row.stride[1]), fy[k]);
      value = blend(value, back, taps.fraction[0][k]);
    }
    out[k] = value[0] + fx[k] * (value[1] - value[0]);
  }
}

template <class T, class Index, int DIMS>
void linear_row(const T* images, const Row<DIMS>& row, const Call<DIMS>& call, T* out,
                int64_t out_channel) {
  const auto careful = [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const Corners<T, DIMS> corners(row, static_cast<double>(k), call.border);
      for (int64_t c = 0; c < call.C; ++c) {
        out[c * out_channel + k] =
            corners.outside ? static_cast<T>(call.fill) : corners.value(images + c * row.numel);
      }
    }
  };
  const Stretch inside = row.inside(call.size[DIMS - 1]);
  careful(0, inside.begin);
  Taps<T, Index> taps;
  for (int64_t k = inside.begin; k < inside.end; k += kTaps) {
    const int64_t n = std::min(kTaps, inside.end - k);
    linear_block<T, Index, DIMS>(row, k, n, taps);
    for (int64_t c = 0; c < call.C; ++c) {
      blend_block<T, Index, DIMS>(images + c * row.numel, row, n, taps, out + c * out_channel + k);
    }
  }
  careful(inside.end, call.size[DIMS - 1]);
}

template <class T, int DIMS>
void nearest_row(const T* images, const Row<DIMS>& row, const Call<DIMS>& call, T* out,
                 int64_t out_channel) {
  for (int64_t k = 0; k < call.size[DIMS - 1]; ++k) {
    const int64_t at = row.nearest(static_cast<double>(k), call.mode, call.border);
    for (int64_t c = 0; c < call.C; ++c) {
      out[c * out_channel + k] = at < 0 ? static_cast<T>(call.fill) : images[c * row.numel + at];
    }
  }
}

template <class T, int DIMS>
void sample(const Tensor& images, const double* matrix, const Call<DIMS>& call, Tensor& out) {
  const Grid<DIMS> grid(images, call);
  for_each_task(call.B * grid.rows, [&](int64_t task) {
    const int64_t b = task / grid.rows, r = task % grid.rows;
    const Row<DIMS> row(matrix + b * DIMS * (DIMS + 1), grid, r);
    const T* from = read<T>(images) + b * call.C * grid.numel;
    T* to = write<T>(out) + b * call.C * grid.out_numel + r * call.size[DIMS - 1];
    if (call.mode != kLinear) {
      nearest_row<T, DIMS>(from, row, call, to, grid.out_numel);
    } else if constexpr (std::is_floating_point_v<T>) {
      if (grid.numel < std::numeric_limits<int32_t>::max()) {
        linear_row<T, int32_t, DIMS>(from, row, call, to, grid.out_numel);
      } else {
        linear_row<T, int64_t, DIMS>(from, row, call, to, grid.out_numel);
      }
    }
  });
}

// Adds one voxel's gradient to the four (two) pairs of neighbours that it was blended from.
template <class T, class Index, int DIMS>
void scatter_voxel(T g, const Row<DIMS>& row, const Taps<T, Index>& taps, int64_t k, T* image) {
  const T fx = taps.fraction[DIMS - 1][k];
  const T low = taps.fraction[DIMS - 2][k] * g, top = g - low;
  const auto pair = [&](T* at, T value) {
    const T right = fx * value;
    at[0] += value - right;
    at[1] += right;
  };
  T* at = image + taps.index[k];
  if constexpr (DIMS == 2) {
    pair(at, top);
    pair(at + row.stride[0], low);
  } else {
    const T fz = taps.fraction[0][k];
    pair(at, top - fz * top);
    pair(at + row.stride[1], low - fz * low);
    pair(at + row.stride[0], fz * top);
    pair(at + row.stride[0] + row.stride[1], fz * low);
  }
}

// The gradient in the images: a task scatters whole channels, voxel after voxel. With few images a
// task takes one channel, else all of one image, which shares the taps; the sums are the same.
template <class T, class Index, int DIMS>
void scatter(const Tensor& grad, const double* matrix, const Call<DIMS>& call,
             const Grid<DIMS>& grid, Tensor& out) {
  const int64_t parts = call.B < 8 ? call.C : 1, channels = parts > 0 ? call.C / parts : 0;
  for_each_task(call.B * parts, [&](int64_t task) {
    T* to = write<T>(out) + task * channels * grid.numel;
    for (int64_t r = 0; r < grid.rows; ++r) {
      const Row<DIMS> row(matrix + task / parts * DIMS * (DIMS + 1), grid, r);
      const T* from = read<T>(grad) + task * channels * grid.out_numel + r * call.size[DIMS - 1];
      if (call.mode != kLinear) {
        for (int64_t k = 0; k < call.size[DIMS - 1]; ++k) {
          const int64_t at = row.nearest(static_cast<double>(k), call.mode, call.border);
          for (int64_t c = 0; at >= 0 && c < channels; ++c) {
            to[c * grid.numel + at] += from[c * grid.out_numel + k];
          }
        }
        continue;
      }
      const auto careful = [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const Corners<T, DIMS> corners(row, static_cast<double>(k), call.border);
          for (int64_t c = 0; !corners.outside && c < channels; ++c) {
            corners.scatter(from[c * grid.out_numel + k], to + c * grid.numel);
          }
        }
      };
      const Stretch inside = row.inside(call.size[DIMS - 1]);
      careful(0, inside.begin);
      Taps<T, Index> taps;
      for (int64_t k0 = inside.begin; k0 < inside.end; k0 += kTaps) {
        const int64_t n = std::min(kTaps, inside.end - k0);
        linear_block<T, Index, DIMS>(row, k0, n, taps);
        for (int64_t c = 0; c < channels; ++c) {
          const T* pull = from + c * grid.out_numel + k0;
          for (int64_t k = 0; k < n; ++k) {
            scatter_voxel(pull[k], row, taps, k, to + c * grid.numel);
          }
        }
      }
      careful(inside.end, call.size[DIMS - 1]);
    }
  });
}

// The gradient in the matrix: sums over a row, rows in groups, groups in order.
template <class T, class Index, int DIMS>
void gather_matrix(const Tensor& grad, const Tensor& images, const double* matrix,
                   const Call<DIMS>& call, const Grid<DIMS>& grid, Tensor& out) {
  constexpr int64_t group = 64;
  constexpr int entries = DIMS * (DIMS + 1);
  const int64_t groups = (grid.rows + group - 1) / group;
  std::vector<double> partial(static_cast<size_t>(call.B * groups * entries));
  for_each_task(call.B * groups, [&](int64_t task) {
    const int64_t b = task / groups, first = task % groups * group;
    double* sums = partial.data() + task * entries;
    for (int64_t r = first; r < std::min(grid.rows, first + group); ++r) {
      const Row<DIMS> row(matrix + b * entries, grid, r);
      double slope[DIMS] = {}, moment[DIMS] = {};
      const auto careful = [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const Corners<T, DIMS> corners(row, static_cast<double>(k), call.border);
          if (corners.outside) continue;
          for (int64_t c = 0; c < call.C; ++c) {
            const int64_t bc = b * call.C + c;
            const double g = read<T>(grad)[bc * grid.out_numel + r * call.size[DIMS - 1] + k];
            T along[DIMS];
            corners.slopes(read<T>(images) + bc * grid.numel, along);
            for (int a = 0; a < DIMS; ++a) {
              slope[a] += g * along[a];
              moment[a] += g * along[a] * static_cast<double>(k);
            }
          }
        }
      };
      const Stretch inside = row.inside(call.size[DIMS - 1]);
      careful(0, inside.begin);
      Taps<T, Index> taps;
      for (int64_t k0 = inside.begin; k0 < inside.end; k0 += kTaps) {
        const int64_t n = std::min(kTaps, inside.end - k0);
        linear_block<T, Index, DIMS>(row, k0, n, taps);
        for (int64_t c = 0; c < call.C; ++c) {
          const int64_t bc = b * call.C + c;
          const T* from = read<T>(grad) + bc * grid.out_numel + r * call.size[DIMS - 1] + k0;
          slopes_block<T, Index, DIMS>(read<T>(images) + bc * grid.numel, row, n, k0, taps, from,
                                       slope, moment);
        }
      }
      careful(inside.end, call.size[DIMS - 1]);
      for (int a = 0; a < DIMS; ++a) {
        double* to = sums + a * (DIMS + 1);
        for (int d = 0; d < DIMS - 1; ++d) to[d] += slope[a] * static_cast<double>(row.at[d]);
        to[DIMS - 1] += moment[a];
        to[DIMS] += slope[a];
      }
    }
  });
  for (int64_t b = 0; b < call.B; ++b) {
    for (int e = 0; e < entries; ++e) {
      double total = 0;
      for (int64_t g = 0; g < groups; ++g) total += partial[(b * groups + g) * entries + e];
      write<double>(out)[b * entries + e] = total;
    }
  }
}

template <class Body>
void with_dims(const Tensor& images, const Tensor& matrix, const int64_t* size, int64_t mode,
               int64_t border, double fill, const Body& body) {
  const int64_t dims = images.dim() - 2;
  STD_TORCH_CHECK((dims == 2 || dims == 3) && matrix.scalar_type() == ScalarType::Double &&
                      matrix.numel() == images.size(0) * dims * (dims + 1),
                  "affine_sample: images and matrix do not fit one another");
  if (dims == 2) body(Call<2>(images, size, mode, border, fill));
  if (dims == 3) body(Call<3>(images, size, mode, border, fill));
}

Tensor affine_sample(const Tensor& images_any, const Tensor& matrix_any,
                     torch::headeronly::IntHeaderOnlyArrayRef size, int64_t mode, int64_t border,
                     double fill) {
  const Tensor images = torch::stable::contiguous(images_any);
  const Tensor matrix = torch::stable::contiguous(matrix_any);
  std::vector<int64_t> sizes{images.size(0), images.size(1)};
  sizes.insert(sizes.end(), size.begin(), size.end());
  Tensor out = fresh(images, sizes, images.scalar_type());
  with_dims(images, matrix, size.data(), mode, border, fill, [&]<int DIMS>(Call<DIMS> call) {
    const auto run = [&](auto zero) {
      using T = decltype(zero);
      if constexpr (DIMS == 3 && std::is_floating_point_v<T>) {
        if (separable<T>(images, read<double>(matrix), call, out)) return;
      }
      sample<T, DIMS>(images, read<double>(matrix), call, out);
    };
    switch (images.scalar_type()) {
      case ScalarType::Float:
        return run(float{});
      case ScalarType::Double:
        return run(double{});
      default:
        break;
    }
    STD_TORCH_CHECK(mode != kLinear, "affine_sample: linear sampling needs floating images");
    switch (images.element_size()) {
      case 1:
        return run(uint8_t{});
      case 2:
        return run(int16_t{});
      case 4:
        return run(int32_t{});
      default:
        return run(int64_t{});
    }
  });
  return out;
}

std::tuple<Tensor, Tensor> affine_sample_backward(const Tensor& grad_any, const Tensor& images_any,
                                                  const Tensor& matrix_any, int64_t mode,
                                                  int64_t border, bool for_images,
                                                  bool for_matrix) {
  const Tensor grad = torch::stable::contiguous(grad_any);
  const Tensor images = torch::stable::contiguous(images_any);
  const Tensor matrix = torch::stable::contiguous(matrix_any);
  Tensor to_images = for_images ? torch::stable::new_zeros(images, images.sizes())
                                : torch::stable::new_empty(images, {0});
  Tensor to_matrix = torch::stable::new_zeros(matrix, matrix.sizes());
  with_dims(
      images, matrix, grad.sizes().data() + 2, mode, border, 0, [&]<int DIMS>(Call<DIMS> call) {
        const Grid<DIMS> grid(images, call);
        const auto run_as = [&]<class T, class Index>() {
          if (for_images)
            scatter<T, Index, DIMS>(grad, read<double>(matrix), call, grid, to_images);
          if (for_matrix && mode == kLinear) {
            gather_matrix<T, Index, DIMS>(grad, images, read<double>(matrix), call, grid,
                                          to_matrix);
          }
        };
        const auto run = [&](auto zero) {
          using T = decltype(zero);
          const bool small = grid.numel < std::numeric_limits<int32_t>::max();
          small ? run_as.template operator()<T, int32_t>()
                : run_as.template operator()<T, int64_t>();
        };
        STD_TORCH_CHECK(
            images.scalar_type() == ScalarType::Float || images.scalar_type() == ScalarType::Double,
            "affine_sample_backward: images must be float32 or float64");
        images.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
      });
  return {to_images, to_matrix};
}

}  // namespace
}  // namespace cmrfast::cpu

STABLE_TORCH_LIBRARY_IMPL(cmrfast, CPU, m) {
  m.impl("affine_sample", TORCH_BOX(&cmrfast::cpu::affine_sample));
  m.impl("affine_sample_backward", TORCH_BOX(&cmrfast::cpu::affine_sample_backward));
}

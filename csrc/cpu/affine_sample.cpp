// Affine sampling row by row, without a grid in memory.
//
// Along an output row each coordinate is base + k * step. The range of k whose taps are all inside
// is solved for once per row and runs in blocks without bounds checks; voxels that no tap reaches
// are filled; the few in between are checked one by one. Within a block, coordinates are float
// offsets from a base in double. Minimum traffic: images and output once; the 8 (4) taps of a voxel
// come from the caches.
#include <bit>
#include <limits>
#include <vector>

#include "frames.h"
#include "sampling.h"
#include "separable.h"
#include "taps.h"

namespace cmrfast::cpu {
namespace {

template <class T, class Index, int DIMS>
void linear_row(const T* images, const Row<DIMS>& row, const Call<DIMS>& call, T* out,
                int64_t out_channel) {
  const int64_t count = call.size[DIMS - 1];
  const auto [reached, inside] = row.parts(count);
  const T fill = static_cast<T>(call.fill);
  const auto checked = [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const Corners<T, DIMS> corners(row, static_cast<double>(k));
      for (int64_t c = 0; c < call.C; ++c) {
        out[c * out_channel + k] = corners.outside ? fill : corners.value(images + c * row.numel);
      }
    }
  };
  for (int64_t c = 0; c < call.C; ++c) {
    std::fill(out + c * out_channel, out + c * out_channel + reached.begin, fill);
    std::fill(out + c * out_channel + reached.end, out + c * out_channel + count, fill);
  }
  checked(reached.begin, inside.begin);
  for (int64_t k = inside.begin; k < inside.end; k += kBlock) {
    const Taps<T, Index, DIMS> taps(row, k, std::min(kBlock, inside.end - k));
    for (int64_t c = 0; c < call.C; ++c) {
      blend_block(images + c * row.numel, row, taps, out + c * out_channel + k);
    }
  }
  checked(inside.end, reached.end);
}

template <class T, int DIMS>
void nearest_row(const T* images, const Row<DIMS>& row, const Call<DIMS>& call, T fill, T* out,
                 int64_t out_channel) {
  for (int64_t k = 0; k < call.size[DIMS - 1]; ++k) {
    const int64_t at = row.nearest(static_cast<double>(k), call.mode);
    for (int64_t c = 0; c < call.C; ++c) {
      out[c * out_channel + k] = at < 0 ? fill : images[c * row.numel + at];
    }
  }
}

template <class T, int DIMS>
void sample(const Tensor& images, const double* matrix, const Call<DIMS>& call, T fill,
            Tensor& out) {
  const Grid<DIMS> grid(call);
  for_each_task(call.B * grid.rows, [&](int64_t task) {
    const int64_t b = task / grid.rows, r = task % grid.rows;
    const Row<DIMS> row(matrix + b * DIMS * (DIMS + 1), grid, r);
    const T* from = read<T>(images) + b * call.C * grid.numel;
    T* to = write<T>(out) + b * call.C * grid.out_numel + r * call.size[DIMS - 1];
    if (call.mode != Mode::kLinear) {
      nearest_row<T, DIMS>(from, row, call, fill, to, grid.out_numel);
    } else if constexpr (std::is_floating_point_v<T>) {
      if (grid.numel < std::numeric_limits<int32_t>::max()) {
        linear_row<T, int32_t, DIMS>(from, row, call, to, grid.out_numel);
      } else {
        linear_row<T, int64_t, DIMS>(from, row, call, to, grid.out_numel);
      }
    }
  });
}

// The gradient of the images: a task owns some planes of all channels of one image, and adds to
// them from the part of each output row that reaches them, row by row.
template <class T, class Index, int DIMS>
void image_gradient(const Tensor& grad, const double* matrix, const Call<DIMS>& call,
                    const Grid<DIMS>& grid, Tensor& out) {
  constexpr int64_t min_planes = 8, max_slabs = 16;
  const int64_t count = call.size[DIMS - 1];
  const int64_t slabs = call.B >= 8 ? 1 : std::clamp<int64_t>(call.n[0] / min_planes, 1, max_slabs);
  for_each_task(call.B * slabs, [&](int64_t task) {
    const int64_t b = task / slabs, slab = task % slabs;
    T* to = write<T>(out) + b * call.C * grid.numel;
    for (int64_t r = 0; r < grid.rows; ++r) {
      const Row<DIMS> row(matrix + b * DIMS * (DIMS + 1), grid, r, call.n[0] * slab / slabs,
                          call.n[0] * (slab + 1) / slabs);
      const T* from = read<T>(grad) + b * call.C * grid.out_numel + r * count;
      const auto [reached, inside] = row.parts(count);
      if (call.mode != Mode::kLinear) {
        for (int64_t k = reached.begin; k < reached.end; ++k) {
          const int64_t at = row.nearest(static_cast<double>(k), call.mode);
          for (int64_t c = 0; at >= 0 && c < call.C; ++c) {
            to[c * grid.numel + at] += from[c * grid.out_numel + k];
          }
        }
        continue;
      }
      const auto checked = [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const Corners<T, DIMS> corners(row, static_cast<double>(k));
          for (int64_t c = 0; !corners.outside && c < call.C; ++c) {
            corners.scatter(from[c * grid.out_numel + k], to + c * grid.numel);
          }
        }
      };
      checked(reached.begin, inside.begin);
      for (int64_t k = inside.begin; k < inside.end; k += kBlock) {
        const Taps<T, Index, DIMS> taps(row, k, std::min(kBlock, inside.end - k));
        for (int64_t c = 0; c < call.C; ++c) {
          scatter_block(from + c * grid.out_numel + k, row, taps, to + c * grid.numel);
        }
      }
      checked(inside.end, reached.end);
    }
  });
}

// The gradient of the matrix: summed over a row, over groups of rows, and over groups in order.
template <class T, class Index, int DIMS>
std::vector<double> matrix_gradient(const Tensor& grad, const Tensor& images, const double* matrix,
                                    const Call<DIMS>& call, const Grid<DIMS>& grid) {
  constexpr int64_t group = 64;
  constexpr int entries = DIMS * (DIMS + 1);
  const int64_t groups = (grid.rows + group - 1) / group;
  std::vector<double> partial(static_cast<size_t>(call.B * groups * entries));
  for_each_task(call.B * groups, [&](int64_t task) {
    const int64_t b = task / groups, first = task % groups * group;
    double* sums = partial.data() + task * entries;
    for (int64_t r = first; r < std::min(grid.rows, first + group); ++r) {
      const Row<DIMS> row(matrix + b * entries, grid, r);
      double sum[DIMS] = {}, moment[DIMS] = {};
      const auto checked = [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const Corners<T, DIMS> corners(row, static_cast<double>(k));
          if (corners.outside) continue;
          for (int64_t c = 0; c < call.C; ++c) {
            const int64_t bc = b * call.C + c;
            const double g = read<T>(grad)[bc * grid.out_numel + r * call.size[DIMS - 1] + k];
            T along[DIMS];
            corners.slopes(read<T>(images) + bc * grid.numel, along);
            for (int a = 0; a < DIMS; ++a) {
              sum[a] += g * along[a];
              moment[a] += g * along[a] * static_cast<double>(k);
            }
          }
        }
      };
      const auto [reached, inside] = row.parts(call.size[DIMS - 1]);
      checked(reached.begin, inside.begin);
      for (int64_t k = inside.begin; k < inside.end; k += kBlock) {
        const Taps<T, Index, DIMS> taps(row, k, std::min(kBlock, inside.end - k));
        CoordinateGrads<T, DIMS> block;
        for (int64_t c = 0; c < call.C; ++c) {
          const int64_t bc = b * call.C + c;
          const T* from = read<T>(grad) + bc * grid.out_numel + r * call.size[DIMS - 1] + k;
          coordinate_grads_block(read<T>(images) + bc * grid.numel, row, taps, from, block);
        }
        block.sums(k, taps.count, sum, moment);
      }
      checked(inside.end, reached.end);
      for (int a = 0; a < DIMS; ++a) {
        double* to = sums + a * (DIMS + 1);
        for (int d = 0; d < DIMS - 1; ++d) to[d] += sum[a] * static_cast<double>(row.at[d]);
        to[DIMS - 1] += moment[a];
        to[DIMS] += sum[a];
      }
    }
  });
  std::vector<double> sums(static_cast<size_t>(call.B * entries));
  for (int64_t b = 0; b < call.B; ++b) {
    for (int e = 0; e < entries; ++e) {
      double total = 0;
      for (int64_t g = 0; g < groups; ++g) total += partial[(b * groups + g) * entries + e];
      sums[b * entries + e] = total;
    }
  }
  return sums;
}

// The frames of a matrix (B or 1, DIMS, DIMS + 1), float or double, as a matrix for each image from
// output voxels to input voxels; and the gradient of the former from that of the latter.
template <int DIMS>
struct Framed {
  static constexpr int entries = DIMS * (DIMS + 1);
  FrameAxes<DIMS> frame;
  std::vector<double> matrices;

  Framed(const Tensor& given, const Call<DIMS>& call, int64_t frame_option)
      : frame{static_cast<Frame>(frame_option), {}}, matrices(call.B * entries) {
    for (int a = 0; a < DIMS; ++a) frame.axis[a] = FrameAxis(frame.frame, call.n[a], call.size[a]);
    with_real("affine_sample: matrix", given.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      for (int64_t b = 0; b < call.B; ++b) {
        const T* matrix = read<T>(given) + (given.size(0) == 1 ? 0 : b * entries);
        for (int e = 0; e < entries; ++e) {
          matrices[b * entries + e] = frame.voxel_entry(matrix, e / (DIMS + 1), e % (DIMS + 1));
        }
      }
    });
  }

  void gradient(const std::vector<double>& grads, Tensor& out) const {
    with_real("affine_sample: matrix", out.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      std::vector<double> sums(out.numel());
      for (size_t m = 0; m < grads.size(); m += entries) {
        for (int e = 0; e < entries; ++e) {
          const int a = e / (DIMS + 1), d = e % (DIMS + 1);
          double grad = grads[m + e];
          if (d < DIMS) {
            grad = grad * frame.axis[d].step + grads[m + e - d + DIMS] * frame.axis[d].start;
          }
          sums[(m + frame.index(a, d)) % sums.size()] += grad * frame.axis[a].half;
        }
      }
      std::copy(sums.begin(), sums.end(), write<T>(out));
    });
  }
};

template <class Body>
void with_dims(const Tensor& images, const Tensor& matrix, const int64_t* size, int64_t mode,
               int64_t border, double fill, const Body& body) {
  const int64_t dims = images.dim() - 2;
  STD_TORCH_CHECK((dims == 2 || dims == 3) && matrix.dim() == 3 && matrix.size(1) == dims &&
                      matrix.size(2) == dims + 1 &&
                      (matrix.size(0) == 1 || matrix.size(0) == images.size(0)),
                  "affine_sample: images and matrix do not fit one another");
  if (dims == 2) body(Call<2>(images, size, mode, border, fill));
  if (dims == 3) body(Call<3>(images, size, mode, border, fill));
}

Tensor affine_sample(const Tensor& images_any, const Tensor& matrix_any,
                     torch::headeronly::IntHeaderOnlyArrayRef size, int64_t frame, int64_t mode,
                     int64_t border, double fill) {
  const Tensor images = torch::stable::contiguous(images_any);
  const Tensor given = torch::stable::contiguous(matrix_any);
  Tensor out = fresh(images, concat({images.size(0), images.size(1)}, size), images.scalar_type());
  with_dims(images, given, size.data(), mode, border, fill, [&]<int DIMS>(Call<DIMS> call) {
    const Framed<DIMS> framed(given, call, frame);
    const double* matrix = framed.matrices.data();
    const auto run = [&](auto fill) {
      using T = decltype(fill);
      if constexpr (DIMS == 3 && std::is_floating_point_v<T>) {
        if (separable<T>(images, matrix, call, out)) return;
      }
      sample<T, DIMS>(images, matrix, call, fill, out);
    };
    switch (images.scalar_type()) {
      case ScalarType::Float:
        return run(static_cast<float>(fill));
      case ScalarType::Double:
        return run(fill);
      default:
        break;
    }
    STD_TORCH_CHECK(call.mode != Mode::kLinear,
                    "affine_sample: linear sampling needs floating images");
    switch (images.scalar_type()) {  // nearest voxels are copied, whatever their bits mean
      case ScalarType::Half:
        return run(std::bit_cast<int16_t>(torch::headeronly::Half(static_cast<float>(fill))));
      case ScalarType::BFloat16:
        return run(std::bit_cast<int16_t>(torch::headeronly::BFloat16(static_cast<float>(fill))));
      case ScalarType::Bool:
      case ScalarType::Byte:
        return run(static_cast<uint8_t>(fill));
      case ScalarType::Char:
        return run(static_cast<int8_t>(fill));
      case ScalarType::Short:
        return run(static_cast<int16_t>(fill));
      case ScalarType::Int:
        return run(static_cast<int32_t>(fill));
      case ScalarType::Long:
        return run(static_cast<int64_t>(fill));
      default:
        STD_TORCH_CHECK(false, "affine_sample: no kernel for this dtype");
    }
  });
  return out;
}

std::tuple<Tensor, Tensor> affine_sample_backward(const Tensor& grad_any, const Tensor& images_any,
                                                  const Tensor& matrix_any, int64_t frame,
                                                  int64_t mode, int64_t border, bool for_images,
                                                  bool for_matrix) {
  const Tensor grad = torch::stable::contiguous(grad_any);
  const Tensor images = torch::stable::contiguous(images_any);
  const Tensor given = torch::stable::contiguous(matrix_any);
  STD_TORCH_CHECK(grad.scalar_type() == images.scalar_type() && grad.dim() == images.dim() &&
                      grad.size(0) == images.size(0) && grad.size(1) == images.size(1),
                  "affine_sample_backward: grad and images do not fit one another");
  Tensor grad_images = for_images ? torch::stable::new_zeros(images, images.sizes())
                                  : torch::stable::new_empty(images, {0});
  Tensor grad_matrix = torch::stable::new_zeros(given, given.sizes());
  with_dims(images, given, grad.sizes().data() + 2, mode, border, 0,
            [&]<int DIMS>(Call<DIMS> call) {
              const Grid<DIMS> grid(call);
              const Framed<DIMS> framed(given, call, frame);
              const double* matrix = framed.matrices.data();
              const auto run_as = [&]<class T, class Index>() {
                if (for_images)
                  image_gradient<T, Index, DIMS>(grad, matrix, call, grid, grad_images);
                if (for_matrix && call.mode == Mode::kLinear) {
                  framed.gradient(matrix_gradient<T, Index, DIMS>(grad, images, matrix, call, grid),
                                  grad_matrix);
                }
              };
              const auto run = [&](auto zero) {
                using T = decltype(zero);
                const bool small = grid.numel < std::numeric_limits<int32_t>::max();
                small ? run_as.template operator()<T, int32_t>()
                      : run_as.template operator()<T, int64_t>();
              };
              with_real("affine_sample_backward: images", images.scalar_type(), run);
            });
  return {grad_images, grad_matrix};
}

}  // namespace
}  // namespace cmrfast::cpu

STABLE_TORCH_LIBRARY_IMPL(cmrfast, CPU, m) {
  m.impl("affine_sample", TORCH_BOX(&cmrfast::cpu::affine_sample));
  m.impl("affine_sample_backward", TORCH_BOX(&cmrfast::cpu::affine_sample_backward));
}

// Where samples are taken: the position of an output voxel in the image, and its taps.
#pragma once

#include <utility>

#include "dtypes.cuh"

namespace cmrfast::cuda {

#ifdef __CUDACC__
// Not fused into one rounding: positions then equal the reference's to the bit, and so do ties.
__device__ inline double multiply_add(double sum, double a, double b) {
  return __dadd_rn(sum, __dmul_rn(a, b));
}
#else
inline double multiply_add(double sum, double a, double b) { return sum + a * b; }
#endif

template <int DIMS>
struct Grid {
  int64_t n[DIMS], size[DIMS], numel = 1, out_numel = 1;
  Divisor along[DIMS];  // by the output's sizes

  explicit Grid(const Sampling& call) : Grid(call, std::make_integer_sequence<int, DIMS>{}) {}

 private:
  template <int... A>
  Grid(const Sampling& call, std::integer_sequence<int, A...>) : along{Divisor(call.size[A])...} {
    for (int a = 0; a < DIMS; ++a) {
      n[a] = call.n[a];
      size[a] = call.size[a];
      numel *= n[a];
      out_numel *= size[a];
    }
  }
};

template <int DIMS>
struct Position {
  double out[DIMS], x[DIMS];  // the output voxel, and where it falls in the image

  __device__ Position(const Grid<DIMS>& grid, const double* matrix, int64_t voxel) {
#pragma unroll
    for (int a = DIMS - 1; a >= 0; --a) {
      const int64_t next = grid.along[a].divide(voxel);
      out[a] = static_cast<double>(voxel - next * grid.size[a]);
      voxel = next;
    }
#pragma unroll
    for (int a = 0; a < DIMS; ++a) {
      const double* m = matrix + a * (DIMS + 1);
      x[a] = m[DIMS];
#pragma unroll
      for (int d = 0; d < DIMS; ++d) x[a] = multiply_add(x[a], m[d], out[d]);
    }
  }
};

// Clamped to the image; a NaN counts as 0.
__device__ inline double clamp_to_image(double x, double last) {
  return x > 0 && x - x == 0 ? (x < last ? x : last) : 0;
}

// The index of the nearest voxel, or -1 outside.
template <int DIMS>
__device__ int64_t nearest(const Grid<DIMS>& grid, const Position<DIMS>& at, Mode mode,
                           Border border) {
  int64_t index = 0;
#pragma unroll
  for (int a = 0; a < DIMS; ++a) {
    double x = at.x[a];
    const double last = static_cast<double>(grid.n[a] - 1);
    if (border == Border::kClampHalf && !(x >= -0.5 && x < last + 0.5)) return -1;
    if (border != Border::kZeros) x = clamp_to_image(x, last);
    const double cell = mode == Mode::kNearestEven ? rint(x) : floor(x + 0.5);
    if (!(cell >= 0 && cell <= last)) return -1;
    index = index * grid.n[a] + static_cast<int64_t>(cell);
  }
  return index;
}

// The 2^DIMS voxels that a linear sample interpolates. Corner t is one up along axis a if bit a of
// t is set; its tap counts only if it is inside the image.
template <class T, int DIMS>
struct Taps {
  static constexpr int count = 1 << DIMS;
  T fraction[DIMS];
  int64_t first, step[DIMS];  // index of corner 0, and the distance to the next along each axis
  unsigned counts = 0;        // one bit per corner
  bool differentiable[DIMS];  // false along an axis where the position was clamped
  bool outside = false;

  __device__ Taps(const Grid<DIMS>& grid, const Position<DIMS>& at, Border border) : first(0) {
    unsigned in[DIMS];  // the corners inside along each axis
    int64_t stride = 1;
#pragma unroll
    for (int a = DIMS - 1; a >= 0; --a) {
      double x = at.x[a];
      const double last = static_cast<double>(grid.n[a] - 1);
      if (border == Border::kZeros && !(x > -1 && x < last + 1)) outside = true;
      if (border == Border::kClampHalf && !(x >= -0.5 && x < last + 0.5)) outside = true;
      differentiable[a] = border == Border::kZeros || (x > 0 && x < last);
      if (border != Border::kZeros) x = clamp_to_image(x, last);
      const double whole = outside ? 0 : floor(x);
      const auto cell = static_cast<int64_t>(whole);
      fraction[a] = static_cast<T>(x - whole);
      first += cell * stride;
      step[a] = stride;
      stride *= grid.n[a];
      in[a] = 0;
#pragma unroll
      for (int t = 0; t < count; ++t) {
        const int64_t i = cell + (t >> a & 1);
        in[a] |= static_cast<unsigned>(i >= 0 && i < grid.n[a]) << t;
      }
    }
    if (outside) return;
    counts = (1u << count) - 1;
#pragma unroll
    for (int a = 0; a < DIMS; ++a) counts &= in[a];
  }

  __device__ int64_t index(int t) const {
    int64_t at = first;
#pragma unroll
    for (int a = 0; a < DIMS; ++a) at += (t >> a & 1) ? step[a] : 0;
    return at;
  }
  __device__ T factor(int t, int a) const { return (t >> a & 1) ? fraction[a] : 1 - fraction[a]; }
  __device__ T weight(int t) const {
    T product = factor(t, 0);
#pragma unroll
    for (int a = 1; a < DIMS; ++a) product *= factor(t, a);
    return product;
  }
  template <class In>
  __device__ T voxel(const In* image, int t) const {
    return counts >> t & 1 ? to_real<T>(image[index(t)]) : T{0};
  }
};

}  // namespace cmrfast::cuda

// Where samples are taken: runs of output voxels mapped into an image, and the taps of one voxel.
//
// A block takes a few runs of one image. One thread per run finds where it lies and which of its
// voxels have all their taps inside; warps then go through the runs.
#pragma once

#include <utility>

#include "../frames.h"
#include "dtypes.cuh"

namespace cmrfast::cuda {

constexpr int kWarps = kThreads / 32;

// Whether positions in units of 2^-32 are exact enough for weights of this type.
template <class T>
constexpr bool kUnitsSuffice = std::is_same_v<T, float>;

template <int DIMS>
struct Grid {
  static constexpr int entries = DIMS * (DIMS + 1);
  int64_t n[DIMS], size[DIMS], numel = 1, out_numel = 1;
  int stride[DIMS];  // of the images; used where their indices fit in 32 bits
  FrameAxes<DIMS> frame;
  Divisor runs;                            // of a row
  Divisor along[DIMS], image_along[DIMS];  // by the output's and the image's sizes

  explicit Grid(const Sampling& call) : Grid(call, std::make_integer_sequence<int, DIMS>{}) {}

  Chunks chunks(int64_t items) const {
    return Chunks(items, out_numel == 0 ? 0 : out_numel / size[DIMS - 1] * runs.value, kRuns);
  }

 private:
  template <int... A>
  Grid(const Sampling& call, std::integer_sequence<int, A...>)
      : frame{call.frame, {FrameAxis(call.frame, call.n[A], call.size[A])...}},
        runs(ceil_div(call.size[DIMS - 1], kRun)),
        along{Divisor(call.size[A])...},
        image_along{Divisor(call.n[A])...} {
    for (int a = DIMS - 1; a >= 0; --a) {
      n[a] = call.n[a];
      size[a] = call.size[a];
      stride[a] = static_cast<int>(numel);
      numel *= n[a];
      out_numel *= size[a];
    }
  }
};

// The matrix of an image, from output voxels to input voxels, in shared memory. All threads of the
// block must call it.
template <int DIMS>
__device__ const double* voxel_matrix(const Sampling& call, const Grid<DIMS>& grid, int64_t item) {
  constexpr int entries = Grid<DIMS>::entries;
  __shared__ double matrix[entries];
  const int t = static_cast<int>(threadIdx.x), a = t / (DIMS + 1), d = t % (DIMS + 1);
  const int64_t first = call.matrices == 1 ? 0 : item * entries;
  __syncthreads();  // the matrix of an earlier call may still be read
  if (t < entries) {
    matrix[t] = call.matrix_is_double
                    ? grid.frame.voxel_entry(static_cast<const double*>(call.matrix) + first, a, d)
                    : grid.frame.voxel_entry(static_cast<const float*>(call.matrix) + first, a, d);
  }
  __syncthreads();
  return matrix;
}

// Voxels of a run.
struct Range {
  int begin, end;
  __device__ int count() const { return end - begin; }
  // Voxel `rest` of those that are not in the range.
  __device__ int beyond(int rest) const { return rest < begin ? rest : rest + count(); }
};

// Positions of a run in units of 2^-32 voxels, which overflow only where they are not used.
template <int DIMS>
struct Units {
  uint64_t start[DIMS], step[DIMS];
  bool straight;  // the run goes along the last axis of the image
  Range inside;   // all taps of these are inside, even if positions are off by a few units
};

// The voxels first, first + 1, ... of an output row, at most kRun. Voxel k of the row falls on
// base + k * step, rounded as in the reference.
template <int DIMS>
struct Run {
  double base[DIMS], step[DIMS];
  double at[DIMS];     // the first voxel, in the coordinates that the matrix maps
  int64_t first, out;  // it along the row, and in the output
  int count;
  Units<DIMS> units;

  __device__ Run() {}
  __device__ Run(const Grid<DIMS>& grid, const double* matrix, int64_t number) {
    int64_t line = grid.runs.divide(number);
    first = (number - line * grid.runs.value) * kRun;
    out = line * grid.size[DIMS - 1] + first;
    count = static_cast<int>(smaller(kRun, grid.size[DIMS - 1] - first));
    double voxel[DIMS];
    voxel[DIMS - 1] = static_cast<double>(first);
#pragma unroll
    for (int a = DIMS - 2; a >= 0; --a) {
      const int64_t next = grid.along[a].divide(line);
      voxel[a] = static_cast<double>(line - next * grid.size[a]);
      line = next;
    }
#pragma unroll
    for (int a = 0; a < DIMS; ++a) {
      const FrameAxis& axis = grid.frame.axis[a];
      at[a] = axis.start + axis.step * voxel[a];
      const double* m = matrix + a * (DIMS + 1);
      step[a] = m[DIMS - 1];
      base[a] = m[DIMS];
#pragma unroll
      for (int d = 0; d < DIMS - 1; ++d) base[a] = multiply_add(base[a], m[d], voxel[d]);
    }
    solve(grid);
  }

  __device__ double position(int a, int k) const {
    return multiply_add(base[a], step[a], static_cast<double>(first + k));
  }
  __device__ void position(int k, double (&x)[DIMS]) const {
#pragma unroll
    for (int a = 0; a < DIMS; ++a) x[a] = position(a, k);
  }

 private:
  // Finds `units`. Floats are exact to less than a voxel of a run.
  __device__ void solve(const Grid<DIMS>& grid) {
    constexpr double unit = 4294967296.0, limit = 1 << 29, margin = 1.0 / 1024;
    const float voxels = static_cast<float>(count);
    float begin = -2, end = voxels + 1;
    units.straight = true;
    bool regular = grid.numel < int64_t{1} << 31;
#pragma unroll
    for (int a = 0; a < DIMS; ++a) {
      const double start = position(a, 0), last = static_cast<double>(grid.n[a] - 1);
      regular = regular && last > 0 && fabs(start) < limit && fabs(step[a]) * kRun < limit;
      units.start[a] = regular ? static_cast<uint64_t>(llrint(start * unit)) : 0;
      units.step[a] = regular ? static_cast<uint64_t>(llrint(step[a] * unit)) : 0;
      if (a < DIMS - 1 && units.step[a] != 0) units.straight = false;
      const float per_step = units.step[a] == 0 ? 1e30f : reciprocal(static_cast<float>(step[a]));
      const float k0 = static_cast<float>(margin - start) * per_step;
      const float k1 = static_cast<float>(last - margin - start) * per_step;
      begin = fmaxf(begin, fminf(k0, k1));
      end = fminf(end, fmaxf(k0, k1));
    }
    const Range range = {static_cast<int>(fminf(begin, voxels)) + 2,
                         static_cast<int>(fmaxf(end, 1.0f)) - 1};
    units.inside = regular && range.count() > 0 ? range : Range{0, 0};
  }
};

// The runs of a block, in shared memory: runs[0] to runs[chunk.end - chunk.begin - 1]. All threads
// of the block must call it.
template <int DIMS>
__device__ const Run<DIMS>* runs_of(const Sampling& call, const Grid<DIMS>& grid,
                                    const Chunk& chunk) {
  __shared__ Run<DIMS> runs[kRuns];
  const double* matrix = voxel_matrix(call, grid, chunk.item);
  const int t = static_cast<int>(threadIdx.x);
  if (t < chunk.end - chunk.begin) {
    runs[t] = Run<DIMS>(grid, matrix, chunk.begin + t);
  }
  __syncthreads();
  return runs;
}

__device__ inline int cell_of(uint64_t units) { return static_cast<int>(units >> 32); }
__device__ inline float fraction_of(uint64_t units) {
  return static_cast<float>(static_cast<uint32_t>(units)) * 0x1p-32f;
}

// The rows of the image that a straight run lies between, and their weights: pure changes of
// spacing interpolate along the last axis alone.
template <class In, int DIMS>
struct Rows {
  static constexpr int count = 1 << (DIMS - 1);
  int row[count];
  float weight[count];

  __device__ Rows(const Grid<DIMS>& grid, const Units<DIMS>& units) {
#pragma unroll
    for (int r = 0; r < count; ++r) {
      int first = 0;
      weight[r] = 1;
#pragma unroll
      for (int a = 0; a < DIMS - 1; ++a) {
        const int up = r >> a & 1;
        const float fraction = fraction_of(units.start[a]);
        first += (cell_of(units.start[a]) + up) * grid.stride[a];
        weight[r] *= up ? fraction : 1 - fraction;
      }
      row[r] = first;
    }
  }

  // The value where the last axis is at x.
  __device__ float value(const In* image, uint64_t x) const {
    float below = 0, above = 0;
#pragma unroll
    for (int r = 0; r < count; ++r) {
      const In* at = image + (row[r] + cell_of(x));
      below += weight[r] * to_real<float>(at[0]);
      above += weight[r] * to_real<float>(at[1]);
    }
    return below + fraction_of(x) * (above - below);
  }
};

// The cell of voxels around a sample whose taps are all inside.
template <int DIMS>
struct Cell {
  const int (&stride)[DIMS];
  int index = 0;
  float fraction[DIMS];

  __device__ Cell(const Grid<DIMS>& grid, const Units<DIMS>& units, int k) : stride(grid.stride) {
#pragma unroll
    for (int a = 0; a < DIMS; ++a) {
      const uint64_t x = units.start[a] + units.step[a] * static_cast<unsigned>(k);
      index += cell_of(x) * distance(a);
      fraction[a] = fraction_of(x);
    }
  }

  __device__ int distance(int axis) const { return axis == DIMS - 1 ? 1 : stride[axis]; }
  __device__ float mix(int axis, float below, float above) const {
    return below + fraction[axis] * (above - below);
  }

  // The interpolated value; and, with it, its slope along each axis from A on.
  template <int A = 0, class In>
  __device__ float value(const In* at) const {
    if constexpr (A == DIMS) {
      return to_real<float>(*at);
    } else {
      return mix(A, value<A + 1>(at), value<A + 1>(at + distance(A)));
    }
  }
  template <int A = 0, class In>
  __device__ float slopes(const In* at, float (&along)[DIMS]) const {
    if constexpr (A == DIMS) {
      return to_real<float>(*at);
    } else {
      float above_along[DIMS];
      const float below = slopes<A + 1>(at, along);
      const float above = slopes<A + 1>(at + distance(A), above_along);
#pragma unroll
      for (int a = A + 1; a < DIMS; ++a) along[a] = mix(A, along[a], above_along[a]);
      along[A] = above - below;
      return mix(A, below, above);
    }
  }
};

// Clamped to the image; a NaN counts as 0.
__device__ inline double clamp_to_image(double x, double last) {
  return x > 0 && x - x == 0 ? (x < last ? x : last) : 0;
}

// The index of the nearest voxel, or -1 outside.
template <int DIMS>
__device__ int64_t nearest(const Grid<DIMS>& grid, const double (&position)[DIMS], Mode mode,
                           Border border) {
  int64_t index = 0;
#pragma unroll
  for (int a = 0; a < DIMS; ++a) {
    double x = position[a];
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

  __device__ Taps(const Grid<DIMS>& grid, const double (&position)[DIMS], Border border)
      : first(0) {
    unsigned in[DIMS];  // the corners inside along each axis
    int64_t stride = 1;
#pragma unroll
    for (int a = DIMS - 1; a >= 0; --a) {
      double x = position[a];
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

  // The slopes of the interpolated value along each axis.
  template <class In>
  __device__ void slopes(const In* image, T (&along)[DIMS]) const {
#pragma unroll
    for (int a = 0; a < DIMS; ++a) along[a] = 0;
#pragma unroll
    for (int t = 0; t < count; ++t) {
      const T value = voxel(image, t);
#pragma unroll
      for (int a = 0; a < DIMS; ++a) {
        T product = (t >> a & 1) ? value : -value;
#pragma unroll
        for (int d = 0; d < DIMS; ++d) product *= d == a ? T{1} : factor(t, d);
        if (differentiable[a]) along[a] += product;
      }
    }
  }
};

}  // namespace cmrfast::cuda

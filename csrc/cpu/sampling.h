// Where samples are taken: rows of the output grid mapped into an image, and the taps of one voxel.
#pragma once

#include <cmath>
#include <limits>

#include "common.h"
#include "enums.h"
#include "frames.h"
#include "half.h"

namespace cmrfast::cpu {

template <int DIMS>
struct Call {
  int64_t B, C, n[DIMS], size[DIMS];
  Mode mode;
  Border border;
  double fill;
  Call(const Tensor& images, const int64_t* out, int64_t mode, int64_t border, double fill)
      : B(images.size(0)),
        C(images.size(1)),
        mode(static_cast<Mode>(mode)),
        border(static_cast<Border>(border)),
        fill(fill) {
    for (int a = 0; a < DIMS; ++a) {
      n[a] = images.size(a + 2);
      size[a] = out[a];
    }
  }
};

template <int DIMS>
struct Grid {
  int64_t n[DIMS], size[DIMS], stride[DIMS], numel = 1, out_numel = 1, rows = 1;
  Border border;
  explicit Grid(const Call<DIMS>& call) : border(call.border) {
    for (int a = DIMS - 1; a >= 0; --a) {
      n[a] = call.n[a];
      size[a] = call.size[a];
      stride[a] = numel;
      numel *= n[a];
      out_numel *= size[a];
      if (a < DIMS - 1) rows *= size[a];
    }
    if (numel == 0 || out_numel == 0) rows = 0;
  }
};

struct Range {
  int64_t begin, end;
};

// One row of the output: the coordinate of voxel k along axis a is base[a] + k * step[a]. Only taps
// in the planes [first_plane, end_plane) of the image count: all of them, or those of a task.
template <int DIMS>
struct Row {
  int64_t n[DIMS], stride[DIMS], at[DIMS], numel, first_plane, end_plane;
  Border border;
  int64_t ahead;  // distance in voxels to what a row a few rows later reads
  double base[DIMS], step[DIMS];

  Row(const double* matrix, const Grid<DIMS>& grid, int64_t r, int64_t first_plane,
      int64_t end_plane)
      : numel(grid.numel), first_plane(first_plane), end_plane(end_plane), border(grid.border) {
    for (int d = DIMS - 2; d >= 0; --d) {
      at[d] = r % grid.size[d];
      r /= grid.size[d];
    }
    for (int a = 0; a < DIMS; ++a) {
      const double* m = matrix + a * (DIMS + 1);
      n[a] = grid.n[a];
      stride[a] = grid.stride[a];
      step[a] = m[DIMS - 1];
      base[a] = m[DIMS];
      for (int d = 0; d < DIMS - 1; ++d) {
        base[a] = multiply_add(base[a], m[d], static_cast<double>(at[d]));
      }
    }
    constexpr double rows_ahead = 4;
    double voxels = static_cast<double>(stride[0]);  // the far side of the cell
    for (int a = 0; a < DIMS; ++a) {
      const double planes = std::nearbyint(rows_ahead * matrix[a * (DIMS + 1) + DIMS - 2]);
      voxels += planes * static_cast<double>(stride[a]);
    }
    ahead = std::abs(voxels) < 1e15 ? static_cast<int64_t>(voxels) : 0;
  }
  Row(const double* matrix, const Grid<DIMS>& grid, int64_t r)
      : Row(matrix, grid, r, 0, grid.n[0]) {}

  // Clamped to the image; a NaN counts as 0.
  static double clamped(double x, double last) {
    return x > 0 && std::isfinite(x) ? std::min(x, last) : 0;
  }

  double coordinate(int a, double k) const { return base[a] + k * step[a]; }

  // The first and last plane along an axis whose taps count.
  double first(int a) const { return static_cast<double>(a == 0 ? first_plane : 0); }
  double last(int a) const { return static_cast<double>((a == 0 ? end_plane : n[a]) - 1); }

  // Whether coordinates are finite and steps small enough for float offsets within a block.
  bool regular() const {
    for (int a = 0; a < DIMS; ++a) {
      if (!std::isfinite(base[a]) || !(std::abs(step[a]) < 1 << 20)) return false;
    }
    return true;
  }

  // A range of k in which every tap counts: first <= coordinate < last on all axes, with a margin.
  Range inside(int64_t count) const {
    if (!regular()) return {0, 0};
    double begin = 0, end = static_cast<double>(count);
    for (int a = 0; a < DIMS; ++a) {
      if (last(a) < first(a) + 1) return {0, 0};
      if (step[a] == 0) {
        if (base[a] < first(a) || base[a] >= last(a)) return {0, 0};
        continue;
      }
      const double k0 = (first(a) - base[a]) / step[a], k1 = (last(a) - base[a]) / step[a];
      begin = std::max(begin, std::ceil(std::min(k0, k1) + 1e-6));
      end = std::min(end, std::floor(std::max(k0, k1) - 1e-6) + 1);
    }
    if (!(begin < end)) return {0, 0};
    return {static_cast<int64_t>(begin), static_cast<int64_t>(end)};
  }

  // A range that contains every k with a tap that counts, with a margin.
  Range reached(int64_t count) const {
    if (!regular()) return {0, count};
    double begin = 0, end = static_cast<double>(count);
    for (int a = 0; a < DIMS; ++a) {
      // A clamped coordinate reaches the outer planes from any distance.
      double low = first(a) - 1, high = last(a) + 1;
      if (border == Border::kClamp && first(a) == 0) low = -std::numeric_limits<double>::infinity();
      if (border == Border::kClamp && last(a) == static_cast<double>(n[a] - 1)) {
        high = std::numeric_limits<double>::infinity();
      }
      if (step[a] == 0) {
        if (base[a] < low || base[a] > high) return {0, 0};
        continue;
      }
      const double k0 = (low - base[a]) / step[a], k1 = (high - base[a]) / step[a];
      begin = std::max(begin, std::floor(std::min(k0, k1) - 1e-6));
      end = std::min(end, std::ceil(std::max(k0, k1) + 1e-6) + 1);
    }
    if (!(begin < end)) return {0, 0};
    return {static_cast<int64_t>(begin), static_cast<int64_t>(end)};
  }

  // Voxels in [reached.begin, inside.begin) and [inside.end, reached.end) need bounds checks.
  struct Parts {
    Range reached, inside;
  };
  Parts parts(int64_t count) const {
    const Range r = reached(count), i = inside(count);
    if (i.begin >= i.end || r.begin >= r.end) return {r, {r.begin, r.begin}};
    return {r, {std::max(i.begin, r.begin), std::min(i.end, r.end)}};
  }

  // The offset of the nearest voxel, or -1 outside.
  int64_t nearest(double k, Mode mode) const {
    int64_t offset = 0;
    for (int a = 0; a < DIMS; ++a) {
      double x = multiply_add(base[a], k, step[a]);  // exact, for ties
      const double end = static_cast<double>(n[a] - 1);
      if (border == Border::kClamp) {
        x = clamped(x, end);
      } else if (border == Border::kClampHalf) {
        if (!(x >= -0.5 && x < end + 0.5)) return -1;
        x = std::clamp(x, 0.0, end);
      }
      const double cell = mode == Mode::kNearestEven ? std::nearbyint(x) : std::floor(x + 0.5);
      if (!(cell >= 0 && cell <= end)) return -1;
      if (a == 0 && !(cell >= first(0) && cell <= last(0))) return -1;
      offset += static_cast<int64_t>(cell) * stride[a];
    }
    return offset;
  }
};

// The 2^DIMS taps of one voxel, with a check whether each of them counts.
template <class T, int DIMS>
struct Corners {
  static constexpr int count = 1 << DIMS;
  int64_t offset[count];
  T weight[count], fraction[DIMS];
  bool counts[count], differentiable[DIMS], outside = false;

  Corners(const Row<DIMS>& row, double k) {
    int64_t cell[DIMS];
    for (int a = 0; a < DIMS; ++a) {
      double x = row.coordinate(a, k);
      const double last = static_cast<double>(row.n[a] - 1);
      differentiable[a] = true;
      if (row.border == Border::kClampHalf && !(x >= -0.5 && x < last + 0.5)) outside = true;
      if (row.border == Border::kZeros && !(x > -1 && x < last + 1)) outside = true;
      if (outside) return;
      if (row.border != Border::kZeros) {
        differentiable[a] = x > 0 && x < last;
        x = Row<DIMS>::clamped(x, last);
      }
      const double whole = std::floor(x);
      cell[a] = static_cast<int64_t>(whole);
      fraction[a] = static_cast<T>(x - whole);
    }
    for (int t = 0; t < count; ++t) {
      offset[t] = 0;
      weight[t] = 1;
      counts[t] = true;
      for (int a = 0; a < DIMS; ++a) {
        const int64_t i = cell[a] + up(t, a);
        counts[t] = counts[t] &&
                    (a == 0 ? i >= row.first_plane && i < row.end_plane : i >= 0 && i < row.n[a]);
        offset[t] += i * row.stride[a];
        weight[t] *= factor(t, a);
      }
    }
  }

  static int up(int corner, int axis) { return corner >> axis & 1; }
  T factor(int corner, int axis) const {
    return up(corner, axis) ? fraction[axis] : 1 - fraction[axis];
  }

  template <class S>
  T value(const S* image) const {
    T sum = 0;
    for (int t = 0; t < count; ++t) {
      if (counts[t]) sum += weight[t] * to_real(image[offset[t]]);
    }
    return sum;
  }

  void scatter(T g, T* image) const {
    for (int t = 0; t < count; ++t) {
      if (counts[t]) image[offset[t]] += weight[t] * g;
    }
  }

  void slopes(const T* image, T* along) const {
    for (int a = 0; a < DIMS; ++a) {
      along[a] = 0;
      for (int t = 0; differentiable[a] && t < count; ++t) {
        T slope = up(t, a) ? T{1} : T{-1};
        for (int d = 0; d < DIMS; ++d) slope *= d == a ? T{1} : factor(t, d);
        if (counts[t]) along[a] += slope * image[offset[t]];
      }
    }
  }
};

}  // namespace cmrfast::cpu

// Where samples fall: rows of an output grid mapped into an image, and the taps of one voxel.
#pragma once

#include <cmath>
#include <limits>

#include "common.h"

namespace cmrfast::cpu {

enum Mode : int64_t { kLinear = 0, kNearestEven = 1, kNearestUp = 2 };
// Outside: zeros | the nearest border | held for half a voxel, then fill.
enum Border : int64_t { kZeros = 0, kHold = 1, kHalf = 2 };

template <int DIMS>
struct Call {
  int64_t B, C, n[DIMS], size[DIMS], mode, border;
  double fill;
  Call(const Tensor& images, const int64_t* out, int64_t mode, int64_t border, double fill)
      : B(images.size(0)), C(images.size(1)), mode(mode), border(border), fill(fill) {
    for (int a = 0; a < DIMS; ++a) {
      n[a] = images.size(a + 2);
      size[a] = out[a];
    }
  }
};

template <int DIMS>
struct Grid {
  int64_t n[DIMS], size[DIMS], stride[DIMS], border, numel = 1, out_numel = 1, rows = 1;
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

struct Stretch {
  int64_t begin, end;
};

// One row of the output: coordinate of voxel k on axis a is base[a] + k * step[a]. The taps that
// count are those of the planes [first_plane, end_plane) of the image: all of it, or a task's own.
template <int DIMS>
struct Row {
  int64_t n[DIMS], stride[DIMS], at[DIMS], border, numel, first_plane, end_plane;
  int64_t ahead;  // how far on, in memory, a row some rows later reads
  double base[DIMS], step[DIMS];

  Row(const double* matrix, const Grid<DIMS>& grid, int64_t r, int64_t first_plane,
      int64_t end_plane)
      : border(grid.border), numel(grid.numel), first_plane(first_plane), end_plane(end_plane) {
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
      for (int d = 0; d < DIMS - 1; ++d) base[a] += m[d] * static_cast<double>(at[d]);
    }
    constexpr double rows_ahead = 4;
    double voxels = static_cast<double>(stride[0]);  // the far side of the cell, too
    for (int a = 0; a < DIMS; ++a) {
      const double planes = std::nearbyint(rows_ahead * matrix[a * (DIMS + 1) + DIMS - 2]);
      voxels += planes * static_cast<double>(stride[a]);
    }
    ahead = std::abs(voxels) < 1e15 ? static_cast<int64_t>(voxels) : 0;
  }
  Row(const double* matrix, const Grid<DIMS>& grid, int64_t r)
      : Row(matrix, grid, r, 0, grid.n[0]) {}

  // Held at the border; a coordinate that is no number counts as 0.
  static double held(double x, double last) {
    return x > 0 && std::isfinite(x) ? std::min(x, last) : 0;
  }

  double coordinate(int a, double k) const { return base[a] + k * step[a]; }

  // The first and last plane along an axis whose taps count.
  double first(int a) const { return static_cast<double>(a == 0 ? first_plane : 0); }
  double last(int a) const { return static_cast<double>((a == 0 ? end_plane : n[a]) - 1); }

  // Whether coordinates are numbers, and steps short enough for blocks of float offsets.
  bool tame() const {
    for (int a = 0; a < DIMS; ++a) {
      if (!std::isfinite(base[a]) || !(std::abs(step[a]) < 1 << 20)) return false;
    }
    return true;
  }

  // The k for which every tap counts, shy of the ends: first <= coordinate < last on all axes.
  Stretch inside(int64_t count) const {
    if (!tame()) return {0, 0};
    double begin = 0, end = static_cast<double>(count);
    for (int a = 0; a < DIMS; ++a) {
      if (last(a) < first(a) + 1) return {0, 0};
      if (step[a] == 0) {
        if (base[a] < first(a) || base[a] >= last(a)) return {0, 0};
        continue;
      }
      const double one = (first(a) - base[a]) / step[a], other = (last(a) - base[a]) / step[a];
      begin = std::max(begin, std::ceil(std::min(one, other) + 1e-6));
      end = std::min(end, std::floor(std::max(one, other) - 1e-6) + 1);
    }
    if (!(begin < end)) return {0, 0};
    return {static_cast<int64_t>(begin), static_cast<int64_t>(end)};
  }

  // The k for which any tap may count, generous at the ends; holds the inside.
  Stretch reached(int64_t count) const {
    if (!tame()) return {0, count};
    double begin = 0, end = static_cast<double>(count);
    for (int a = 0; a < DIMS; ++a) {
      // What is held at the border reaches the outer planes from however far outside.
      double low = first(a) - 1, high = last(a) + 1;
      if (border == kHold && first(a) == 0) low = -std::numeric_limits<double>::infinity();
      if (border == kHold && last(a) == static_cast<double>(n[a] - 1)) {
        high = std::numeric_limits<double>::infinity();
      }
      if (step[a] == 0) {
        if (base[a] < low || base[a] > high) return {0, 0};
        continue;
      }
      const double one = (low - base[a]) / step[a], other = (high - base[a]) / step[a];
      begin = std::max(begin, std::floor(std::min(one, other) - 1e-6));
      end = std::min(end, std::ceil(std::max(one, other) + 1e-6) + 1);
    }
    if (!(begin < end)) return {0, 0};
    return {static_cast<int64_t>(begin), static_cast<int64_t>(end)};
  }

  // [reached.begin, inside.begin) and [inside.end, reached.end) need care, all else does not.
  struct Parts {
    Stretch reached, inside;
  };
  Parts parts(int64_t count) const {
    const Stretch r = reached(count), i = inside(count);
    if (i.begin >= i.end || r.begin >= r.end) return {r, {r.begin, r.begin}};
    return {r, {std::max(i.begin, r.begin), std::min(i.end, r.end)}};
  }

  // The offset of the nearest voxel, -1 outside.
  int64_t nearest(double k, int64_t mode) const {
    int64_t offset = 0;
    for (int a = 0; a < DIMS; ++a) {
      double x = coordinate(a, k);
      const double end = static_cast<double>(n[a] - 1);
      if (border == kHold) {
        x = held(x, end);
      } else if (border == kHalf) {
        if (!(x >= -0.5 && x < end + 0.5)) return -1;
        x = std::clamp(x, 0.0, end);
      }
      const double cell = mode == kNearestEven ? std::nearbyint(x) : std::floor(x + 0.5);
      if (!(cell >= 0 && cell <= end)) return -1;
      if (a == 0 && !(cell >= first(0) && cell <= last(0))) return -1;
      offset += static_cast<int64_t>(cell) * stride[a];
    }
    return offset;
  }
};

// The taps of one voxel where some may not count.
template <class T, int DIMS>
struct Corners {
  static constexpr int count = 1 << DIMS;
  int64_t offset[count];
  T weight[count], fraction[DIMS];
  bool counts[count], moves[DIMS], outside = false;

  Corners(const Row<DIMS>& row, double k) {
    int64_t cell[DIMS];
    for (int a = 0; a < DIMS; ++a) {
      double x = row.coordinate(a, k);
      const double last = static_cast<double>(row.n[a] - 1);
      moves[a] = true;
      if (row.border == kHalf && !(x >= -0.5 && x < last + 0.5)) outside = true;
      if (row.border == kZeros && !(x > -1 && x < last + 1)) outside = true;
      if (outside) return;
      if (row.border != kZeros) {
        moves[a] = x > 0 && x < last;
        x = Row<DIMS>::held(x, last);
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
        weight[t] *= share(t, a);
      }
    }
  }

  static int up(int corner, int axis) { return corner >> axis & 1; }
  T share(int corner, int axis) const {
    return up(corner, axis) ? fraction[axis] : 1 - fraction[axis];
  }

  T value(const T* image) const {
    T sum = 0;
    for (int t = 0; t < count; ++t) {
      if (counts[t]) sum += weight[t] * image[offset[t]];
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
      for (int t = 0; moves[a] && t < count; ++t) {
        T slope = up(t, a) ? T{1} : T{-1};
        for (int d = 0; d < DIMS; ++d) slope *= d == a ? T{1} : share(t, d);
        if (counts[t]) along[a] += slope * image[offset[t]];
      }
    }
  }
};

}  // namespace cmrfast::cpu

// Where a sample falls: rows of an output grid mapped into an image, taps and their weights.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "common.h"

namespace cmrfast::cpu {

enum Mode : int64_t { kLinear = 0, kNearestEven = 1, kNearestUp = 2 };
// Outside: zeros | the nearest border | held for half a voxel, then fill.
enum Border : int64_t { kZeros = 0, kHold = 1, kHalf = 2 };

constexpr int64_t kTaps = 64;  // voxels of a block: their float offsets stay exact enough

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
  int64_t n[DIMS], size[DIMS], stride[DIMS], numel = 1, out_numel = 1, rows = 1;
  Grid(const Tensor&, const Call<DIMS>& call) {
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

// One row of the output: coordinate of voxel k on axis a is base[a] + k * step[a].
template <int DIMS>
struct Row {
  int64_t n[DIMS], stride[DIMS], numel, at[DIMS];
  double base[DIMS], step[DIMS];

  Row(const double* matrix, const Grid<DIMS>& grid, int64_t r) : numel(grid.numel) {
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
  }

  // Held at the border; a coordinate that is no number counts as 0.
  static double held(double x, double last) {
    return x > 0 && std::isfinite(x) ? std::min(x, last) : 0;
  }

  double coordinate(int a, double k) const { return base[a] + k * step[a]; }

  // The k for which every tap exists: 0 <= coordinate < n - 1 on all axes, shy of the ends.
  Stretch inside(int64_t count) const {
    double begin = 0, end = static_cast<double>(count);
    for (int a = 0; a < DIMS; ++a) {
      const double last = static_cast<double>(n[a] - 1);
      if (n[a] < 2 || !std::isfinite(base[a]) || !std::isfinite(step[a])) return {0, 0};
      if (step[a] == 0) {
        if (base[a] < 0 || base[a] >= last) return {0, 0};
        continue;
      }
      const double zero = -base[a] / step[a], top = (last - base[a]) / step[a];
      begin = std::max(begin, std::ceil(std::min(zero, top) + 1e-6));
      end = std::min(end, std::floor(std::max(zero, top) - 1e-6) + 1);
    }
    if (!(begin < end)) return {0, 0};
    return {static_cast<int64_t>(begin), static_cast<int64_t>(end)};
  }

  // The offset of the nearest voxel, -1 outside.
  int64_t nearest(double k, int64_t mode, int64_t border) const {
    int64_t offset = 0;
    for (int a = 0; a < DIMS; ++a) {
      double x = coordinate(a, k);
      const double last = static_cast<double>(n[a] - 1);
      if (border == kHold) {
        x = held(x, last);
      } else if (border == kHalf) {
        if (!(x >= -0.5 && x < last + 0.5)) return -1;
        x = std::clamp(x, 0.0, last);
      }
      const double cell = mode == kNearestEven ? std::nearbyint(x) : std::floor(x + 0.5);
      if (!(cell >= 0 && cell <= last)) return -1;
      offset += static_cast<int64_t>(cell) * stride[a];
    }
    return offset;
  }
};

// The taps of one voxel where some may not exist.
template <class T, int DIMS>
struct Corners {
  static constexpr int count = 1 << DIMS;
  int64_t offset[count];
  T weight[count];
  T slope[DIMS][count];  // of the weights along each axis
  bool exists[count];
  bool outside = false;

  Corners(const Row<DIMS>& row, double k, int64_t border) {
    int64_t cell[DIMS];
    T fraction[DIMS];
    bool moves[DIMS];
    for (int a = 0; a < DIMS; ++a) {
      double x = row.coordinate(a, k);
      const double last = static_cast<double>(row.n[a] - 1);
      moves[a] = true;
      if (border == kHalf && !(x >= -0.5 && x < last + 0.5)) outside = true;
      if (border == kZeros && !(x > -1 && x < last + 1)) outside = true;
      if (outside) return;
      if (border != kZeros) {
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
      exists[t] = true;
      for (int a = 0; a < DIMS; ++a) slope[a][t] = moves[a] ? T{1} : T{0};
      for (int a = 0; a < DIMS; ++a) {
        const int up = t >> a & 1;
        const int64_t i = cell[a] + up;
        exists[t] = exists[t] && i >= 0 && i < row.n[a];
        offset[t] += i * row.stride[a];
        const T share = up ? fraction[a] : 1 - fraction[a];
        weight[t] *= share;
        for (int d = 0; d < DIMS; ++d) slope[d][t] *= d == a ? (up ? T{1} : T{-1}) : share;
      }
    }
  }

  T value(const T* image) const {
    T sum = 0;
    for (int t = 0; t < count; ++t) {
      if (exists[t]) sum += weight[t] * image[offset[t]];
    }
    return sum;
  }

  void scatter(T g, T* image) const {
    for (int t = 0; t < count; ++t) {
      if (exists[t]) image[offset[t]] += weight[t] * g;
    }
  }

  void slopes(const T* image, T* along) const {
    for (int a = 0; a < DIMS; ++a) {
      along[a] = 0;
      for (int t = 0; t < count; ++t) {
        if (exists[t]) along[a] += slope[a][t] * image[offset[t]];
      }
    }
  }
};

// A block of voxels whose taps all exist: offset of the first tap, fraction along each axis.
template <class T, class Index>
struct Taps {
  Index index[kTaps];
  T fraction[3][kTaps];
};

// Two neighbours along the last axis: one load, and blending along the other axes for both at once.
template <class T>
struct PairOf {
  typedef T type __attribute__((vector_size(2 * sizeof(T))));
};

template <class T>
typename PairOf<T>::type load_pair(const T* from) {
  typename PairOf<T>::type pair;
  std::memcpy(&pair, from, sizeof(pair));
  return pair;
}

template <class Pair, class T>
Pair blend(Pair a, Pair b, T share) {
  return a + share * (b - a);
}

// Sums of g * d value / d coordinate, and of that times k, over a block.
template <class T, class Index, int DIMS>
void slopes_block(const T* image, const Row<DIMS>& row, int64_t n, int64_t k0,
                  const Taps<T, Index>& taps, const T* grad, double* slope, double* moment) {
  T along[DIMS][kTaps];
  for (int64_t k = 0; k < n; ++k) {
    const T fx = taps.fraction[DIMS - 1][k], fy = taps.fraction[DIMS - 2][k], g = grad[k];
    const auto at_x = [fx](auto pair) { return pair[0] + fx * (pair[1] - pair[0]); };
    const T* at = image + taps.index[k];
    const auto top = load_pair(at), low = load_pair(at + row.stride[DIMS - 2]);
    auto across = low - top, value = blend(top, low, fy);
    if constexpr (DIMS == 3) {
      at += row.stride[0];
      const auto deep_top = load_pair(at), deep_low = load_pair(at + row.stride[1]);
      const auto through = blend(deep_top, deep_low, fy) - value;
      const T fz = taps.fraction[0][k];
      along[0][k] = g * at_x(through);
      across = blend(across, deep_low - deep_top, fz);
      value += fz * through;
    }
    along[DIMS - 2][k] = g * at_x(across);
    along[DIMS - 1][k] = g * (value[1] - value[0]);
  }
  for (int a = 0; a < DIMS; ++a) {
    double sum = 0, weighted = 0;
#pragma omp simd reduction(+ : sum, weighted)
    for (int64_t k = 0; k < n; ++k) {
      sum += along[a][k];
      weighted += along[a][k] * static_cast<double>(k0 + k);
    }
    slope[a] += sum;
    moment[a] += weighted;
  }
}

// One axis on its own: cell and fraction of each output position, -1 where it is outside.
template <class T>
struct Axis {
  std::vector<int32_t> cell;
  std::vector<T> fraction;
  Axis(double base, double step, int64_t count, int64_t n) : cell(count), fraction(count) {
    const double last = static_cast<double>(n - 1);
    for (int64_t k = 0; k < count; ++k) {
      const double x = base + step * static_cast<double>(k);
      const double held = std::clamp(x, 0.0, last);
      const double whole = std::min(std::floor(held), std::max(last - 1, 0.0));
      cell[k] = x >= -0.5 && x < last + 0.5 ? static_cast<int32_t>(whole) : -1;
      fraction[k] = static_cast<T>(held - whole);
    }
  }
};

// Linear resampling by an axis-aligned matrix, one axis after the other: two planes become one,
// two of its rows become one, and only along the last axis are there taps. False where the matrix
// is not axis-aligned or the border is another.
template <class T>
bool separable(const Tensor& images, const double* matrix, const Call<3>& call, Tensor& out) {
  if (call.mode != kLinear || call.border != kHalf || call.B != 1 || images.numel() == 0)
    return false;
  int64_t source[3];  // which input axis each output axis walks
  bool used[3] = {};
  for (int a = 0; a < 3; ++a) {
    int found = -1;
    for (int d = 0; d < 3; ++d) {
      if (matrix[a * 4 + d] == 0) continue;
      if (found >= 0 || used[d]) return false;
      found = d;
    }
    if (found < 0 || !std::isfinite(matrix[a * 4 + found]) || !std::isfinite(matrix[a * 4 + 3])) {
      return false;
    }
    used[found] = true;
    source[found] = a;
  }
  Tensor image = images;
  int64_t order[3] = {0, 1, 2};
  for (int d = 0; d < 2; ++d) {  // bring input axis source[d] to place d
    int at = d;
    while (order[at] != source[d]) ++at;
    if (at == d) continue;
    image = torch::stable::transpose(image, d + 2, at + 2);
    std::swap(order[d], order[at]);
  }
  image = torch::stable::contiguous(image);
  const int64_t I = image.size(2), J = image.size(3), K = image.size(4);
  const auto axis = [&](int d, int64_t n) {
    const double* m = matrix + source[d] * 4;
    return Axis<T>(m[3], m[d], call.size[d], n);
  };
  const Axis<T> ai = axis(0, I), aj = axis(1, J), ak = axis(2, K);
  int64_t first = 0, last = call.size[2];  // where the row is inside: one stretch, steps are even
  while (first < last && ak.cell[first] < 0) ++first;
  while (last > first && ak.cell[last - 1] < 0) --last;
  const T fill = static_cast<T>(call.fill);
  const int64_t row_size = call.size[2], plane_size = call.size[1] * row_size;
  torch::stable::parallel_for(0, call.C * call.size[0], 1, [&](int64_t begin, int64_t end) {
    std::vector<T> plane(static_cast<size_t>(J * K)), row(static_cast<size_t>(K + 1));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t c = task / call.size[0], i = task % call.size[0];
      T* to = write<T>(out) + task * plane_size;
      if (ai.cell[i] < 0) {
        std::fill_n(to, plane_size, fill);
        continue;
      }
      const T* front = read<T>(image) + (c * I + ai.cell[i]) * J * K;
      const T* back = front + (I > 1 ? J * K : 0);
      const T fi = ai.fraction[i];
      for (int64_t x = 0; x < J * K; ++x) plane[x] = front[x] + fi * (back[x] - front[x]);
      for (int64_t j = 0; j < call.size[1]; ++j, to += row_size) {
        if (aj.cell[j] < 0) {
          std::fill_n(to, row_size, fill);
          continue;
        }
        const T* top = plane.data() + aj.cell[j] * K;
        const T* low = top + (J > 1 ? K : 0);
        const T fj = aj.fraction[j];
        for (int64_t x = 0; x < K; ++x) row[x] = top[x] + fj * (low[x] - top[x]);
        row[K] = row[K - 1];
        std::fill_n(to, first, fill);
        const int32_t* cell = ak.cell.data();
        const T* fraction = ak.fraction.data();
        const T* values = row.data();
#pragma omp simd
        for (int64_t k = first; k < last; ++k) {
          const T left = values[cell[k]];
          to[k] = left + fraction[k] * (values[cell[k] + 1] - left);
        }
        std::fill_n(to + last, row_size - last, fill);
      }
    }
  });
  return true;
}

}  // namespace cmrfast::cpu

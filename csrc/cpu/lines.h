// Patches as lines through a volume: which of their voxels are inside, and where these lie.
#pragma once

#include <bit>
#include <cmath>

#include "crop.h"
#include "taps.h"

namespace cmrfast::cpu {

// Voxel k of a row is at base + (k - center) * step along each axis.
template <int DIMS>
struct Line {
  double base[DIMS], step[DIMS], center;

  double at(int a, double from_center) const { return base[a] + from_center * step[a]; }

  // The k in [0, count) with low <= x < high for the position x on every axis: one range, since
  // positions are monotonic in k, and exactly it, since both its ends are looked at.
  Range between(const double (&low)[DIMS], const double (&high)[DIMS], int64_t count) const {
    double first = 0, end = static_cast<double>(count);
    for (int a = 0; a < DIMS; ++a) {
      if (!std::isfinite(base[a]) || !std::isfinite(step[a])) return {0, 0};
      if (step[a] == 0) {
        if (!(low[a] <= base[a] && base[a] < high[a])) return {0, 0};
        continue;
      }
      const double k0 = center + (low[a] - base[a]) / step[a];
      const double k1 = center + (high[a] - base[a]) / step[a];
      const double rounding = 1e-15 * (std::abs(base[a]) + std::abs(high[a])) / std::abs(step[a]);
      first = std::max(first, std::ceil(std::min(k0, k1) - rounding - 1e-6));
      end = std::min(end, std::floor(std::max(k0, k1) + rounding + 1e-6) + 1);
    }
    if (!(first < end)) return {0, 0};
    Range range{static_cast<int64_t>(first), static_cast<int64_t>(end)};
    const auto outside = [&](int64_t k) {
      for (int a = 0; a < DIMS; ++a) {
        const double x = at(a, static_cast<double>(k) - center);
        if (!(low[a] <= x && x < high[a])) return true;
      }
      return false;
    };
    while (range.begin < range.end && outside(range.begin)) ++range.begin;
    while (range.begin < range.end && outside(range.end - 1)) --range.end;
    return range;
  }
};

// A block of voxels of a line, with the same number of taps each, all of them inside.
template <class Real, int DIMS>
struct Block {
  int64_t count;                // voxels; the arrays are filled to a multiple of eight
  int64_t index[kBlock];        // of the voxel at or below the position
  Real fraction[DIMS][kBlock];  // beyond it along each axis

  // `lowest` and `highest` are the voxels that may be found; the voxel sought is the last at or
  // below the position + `ahead`.
  [[gnu::noinline]] Block(const Line<DIMS>& line, const int64_t (&stride)[DIMS],
                          const double (&lowest)[DIMS], const double (&highest)[DIMS], double ahead,
                          int64_t k0, int64_t count)
      : count(count) {
    const int64_t padded = (count + 7) / 8 * 8;
    double sum[kBlock];
    for (int64_t k = 0; k < padded; ++k) sum[k] = integer_offset;
    const double first = static_cast<double>(k0) - line.center;
    for (int a = 0; a < DIMS; ++a) {
      const double low = lowest[a], high = highest[a], apart = static_cast<double>(stride[a]);
#pragma omp simd
      for (int64_t k = 0; k < padded; ++k) {
        const double x = line.at(a, first + static_cast<double>(static_cast<int32_t>(k)));
        double whole = std::floor(x + ahead);
        whole = whole > low ? whole : low;  // whatever rounding does, memory accesses are inside
        whole = whole < high ? whole : high;
        fraction[a][k] = static_cast<Real>(x - whole);
        sum[k] += whole * apart;
      }
    }
    for (int64_t k = 0; k < padded; ++k) {
      index[k] = std::bit_cast<int64_t>(sum[k]) - std::bit_cast<int64_t>(integer_offset);
    }
  }

 private:
  // The last bits of 2^52 + n are the integer n: no CPU level lacks this conversion.
  static constexpr double integer_offset = 0x1p52;
};

// A patch and the volume that it is sampled from; rows are counted over all axes but the last.
template <int DIMS>
struct Patch {
  int64_t n[DIMS], stride[DIMS], size[DIMS], zero[DIMS] = {};
  double center[DIMS], matrix[DIMS][DIMS];

  template <class Real>
  Patch(const Volume& volume, const Box& window, const Real* centers, const Real* matrices) {
    int64_t voxels = 1;
    for (int a = DIMS - 1; a >= 0; --a) {
      n[a] = volume.shape.n[a + 3 - DIMS];
      size[a] = window.n[a + 3 - DIMS];
      stride[a] = voxels;
      voxels *= n[a];
      center[a] = static_cast<double>(centers[a]);
      for (int d = 0; d < DIMS; ++d) matrix[a][d] = static_cast<double>(matrices[a * DIMS + d]);
    }
  }

  static double middle(int64_t size) { return static_cast<double>(size - 1) / 2; }

  Line<DIMS> line(int64_t row) const {
    Line<DIMS> line;
    line.center = middle(size[DIMS - 1]);
    double offset[DIMS];
    for (int d = DIMS - 2; d >= 0; --d) {
      offset[d] = static_cast<double>(row % size[d]) - middle(size[d]);
      row /= size[d];
    }
    for (int a = 0; a < DIMS; ++a) {
      line.base[a] = center[a];
      for (int d = 0; d < DIMS - 1; ++d) line.base[a] += matrix[a][d] * offset[d];
      line.step[a] = matrix[a][DIMS - 1];
    }
    return line;
  }

  // The distance in voxels to what a row a few rows later reads.
  int64_t ahead() const {
    constexpr double rows = 4;
    double voxels = 0;
    for (int a = 0; a < DIMS; ++a) {
      voxels += std::nearbyint(rows * matrix[a][DIMS - 2]) * static_cast<double>(stride[a]);
    }
    return std::abs(voxels) < 1e15 ? static_cast<int64_t>(voxels) : 0;
  }

  // Whether every voxel of the patch falls on a voxel of the volume, or would if there were more.
  bool on_grid() const {
    for (int a = 0; a < DIMS; ++a) {
      double first = center[a];
      for (int d = 0; d < DIMS; ++d) {
        if (matrix[a][d] != std::trunc(matrix[a][d])) return false;
        first -= matrix[a][d] * middle(size[d]);
      }
      if (!(std::abs(first) < 0x1p51) || first != std::trunc(first)) return false;
    }
    return true;
  }

  // Whether it is on the grid, and no axis is turned or scaled: then it is a crop.
  bool is_crop(Crop& crop) const {
    for (int a = 0; a < DIMS; ++a) {
      for (int d = 0; d < DIMS; ++d) {
        if (std::abs(matrix[a][d]) != (a == d ? 1 : 0)) return false;
      }
      crop.start[a + 3 - DIMS] = static_cast<int64_t>(center[a] - middle(size[a]));
      crop.flip[a + 3 - DIMS] = matrix[a][a] < 0;
    }
    return true;
  }
};

// Where the TAPS voxels around a position are: from `below` before to `above` after the last voxel
// at or below position + ahead.
template <int TAPS>
struct Around {
  static constexpr int below = TAPS == 4 ? 1 : 0, above = TAPS / 2;
  static constexpr double ahead = TAPS == 1 ? 0.5 : 0;
};

// The range of a line whose taps reach the voxels [begin[a], end[a]) of each axis, if `all`, with
// every one of them.
template <int TAPS, int DIMS>
Range reaching(const Line<DIMS>& line, const int64_t (&begin)[DIMS], const int64_t (&end)[DIMS],
               int64_t count, bool all) {
  using Taps = Around<TAPS>;
  double low[DIMS], high[DIMS];
  for (int a = 0; a < DIMS; ++a) {
    low[a] = static_cast<double>(all ? begin[a] + Taps::below : begin[a] - Taps::above);
    high[a] = static_cast<double>(all ? end[a] - Taps::above : end[a] + Taps::below);
    low[a] -= Taps::ahead, high[a] -= Taps::ahead;
  }
  return line.between(low, high, count);
}

// The voxels of a line that are all inside, block by block.
template <class Real, int TAPS, int DIMS, class Body>
void for_each_block(const Patch<DIMS>& patch, const Line<DIMS>& line, Range inside,
                    const Body& body) {
  double lowest[DIMS], highest[DIMS];
  for (int a = 0; a < DIMS; ++a) {
    lowest[a] = Around<TAPS>::below;
    highest[a] = static_cast<double>(patch.n[a] - 1 - Around<TAPS>::above);
  }
  for (int64_t k = inside.begin; k < inside.end; k += kBlock) {
    body(k, Block<Real, DIMS>(line, patch.stride, lowest, highest, Around<TAPS>::ahead, k,
                              std::min(kBlock, inside.end - k)));
  }
}

}  // namespace cmrfast::cpu

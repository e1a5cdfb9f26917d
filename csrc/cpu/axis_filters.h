// One axis of a separable filter: the weights of a Gaussian, and the taps of a coarser grid.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace cmrfast::cpu {

constexpr double kLargestBlur = 512.0;  // SD in voxels, as in the op's definition
constexpr double kTruncate = 3.0;

// A Gaussian along one axis of n voxels, beyond which the image is reflected.
template <class T>
struct Gaussian {
  int64_t n, radius;
  std::vector<T> weight;

  Gaussian(double given, int64_t n) : n(n) {
    const double sd = given > 0 ? std::min(given, kLargestBlur) : 0;  // also if NaN
    radius = static_cast<int64_t>(kTruncate * sd + 0.5);
    std::vector<double> exact(static_cast<size_t>(2 * radius + 1), 1.0);
    double sum = 0;
    for (int64_t t = -radius; radius > 0 && t <= radius; ++t) {
      const double x = static_cast<double>(t) / sd;
      exact[t + radius] = std::exp(-x * x / 2);
    }
    for (const double w : exact) sum += w;
    for (const double w : exact) weight.push_back(static_cast<T>(w / sum));
  }

  int64_t reflected(int64_t k) const {
    const int64_t at = ((k % (2 * n)) + 2 * n) % (2 * n);
    return std::min(at, 2 * n - 1 - at);
  }

  // The range of voxels that outputs [begin, end) are made of.
  std::pair<int64_t, int64_t> support(int64_t begin, int64_t end) const {
    const int64_t low = begin - radius, high = end - 1 + radius;
    int64_t first = std::max<int64_t>(low, 0), last = std::min(high, n - 1);
    if (low < 0) last = std::max(last, std::min(-low - 1, n - 1));
    if (high >= n) first = std::min(first, std::max<int64_t>(2 * n - 1 - high, 0));
    return {first, last + 1};
  }
};

// Between a and b, which is not used where the fraction is 0: it may be NaN.
template <class T>
T between(T a, T b, T fraction) {
  return fraction == 0 ? a : a + fraction * (b - a);
}

// Along one axis: the voxels that a coarser grid keeps, and between which an output interpolates.
template <class T>
struct CoarseGrid {
  std::vector<int32_t> left, right;
  std::vector<T> fraction;

  CoarseGrid(double zoom, int64_t n) : left(n), right(n), fraction(n) {
    const double voxels = std::nearbyint(static_cast<double>(n) * zoom);
    const int64_t m = voxels <= static_cast<double>(n) ? static_cast<int64_t>(std::max(voxels, 1.0))
                                                       : n;  // NaN too
    const auto nearest = [&](int64_t k) {
      return static_cast<int32_t>((2 * std::min(k, m - 1) + 1) * n / (2 * m));
    };
    for (int64_t k = 0; k < n; ++k) {
      const int64_t position = std::max<int64_t>((2 * k + 1) * m - n, 0), cell = position / (2 * n);
      left[k] = nearest(cell);
      right[k] = nearest(cell + 1);
      fraction[k] =
          static_cast<T>(static_cast<double>(position % (2 * n)) / static_cast<double>(2 * n));
    }
  }
};

}  // namespace cmrfast::cpu

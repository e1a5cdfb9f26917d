// Pixels that a Winograd algorithm must not see.
//
// Its transforms subtract the pixels of a whole tile from one another, so the rounding error of an
// output is relative to the largest of them, also of those that the output does not depend on. That
// is harmless while pixels are of comparable size. One that is much larger than the mean, or not
// finite, is far: kernels sum the tiles that hold one directly.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "common.h"
#include "matmul.h"

namespace cmrfast::cpu {

// Far is what exceeds the mean magnitude of its channel and of its sample this many times.
constexpr double kRange = 256;

// Beyond it transforms may overflow.
template <class T>
constexpr double kLargest = std::is_same_v<T, double> ? 0x1p900 : 0x1p100;

template <class T>
struct Magnitudes {
  double largest = 0, sum = 0;  // of the values up to kLargest
  bool all = true;              // whether those are all values

  // Values are summed in T, in vectors, and once more one by one if that tells nothing.
  Magnitudes(const T* x, int64_t n) {
    constexpr int64_t lanes = Tile<T>::lanes, step = 4 * lanes, block = 64 * step;
    Vector<T> high[4]{};
    int64_t i = 0;
    while (i + step <= n) {
      Vector<T> part[4]{};
      for (const int64_t end = std::min(n, i + block); i + step <= end; i += step) {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          const Vector<T> value = Tile<T>::load(x + i + v * lanes);
          const Vector<T> size = value < 0 ? -value : value;
          part[v] += size;
          high[v] = size > high[v] ? size : high[v];
        }
      }
      const Vector<T> total = (part[0] + part[1]) + (part[2] + part[3]);
      for (int l = 0; l < lanes; ++l) sum += total[l];
    }
    for (int l = 0; l < step; ++l) add(high[l / lanes][l % lanes], false);
    for (; i < n; ++i) add(x[i], true);
    all = std::isfinite(sum) && largest <= kLargest<T>;
    if (all) return;
    largest = sum = 0;
    for (i = 0; i < n; ++i) {
      if (std::abs(x[i]) <= kLargest<T>) add(x[i], true);
    }
  }

  void add(T value, bool counts) {
    const double size = std::abs(static_cast<double>(value));
    largest = std::max(largest, size);
    if (counts) sum += size;
  }

  // The mean without the largest value, which would raise it by itself.
  double mean(int64_t n) const { return n > 1 ? std::max(0.0, sum - largest) / (n - 1) : 0; }
};

// The far pixels of images (B, C, ...) with `voxels` each: of which samples, and where.
template <class T>
class FarPixels {
 public:
  FarPixels(const Tensor& x, int64_t voxels) : of_(x.size(0)) {
    const int64_t B = x.size(0), C = x.size(1), planes = B * C;
    std::vector<Magnitudes<T>> sizes(static_cast<size_t>(planes), Magnitudes<T>(nullptr, 0));
    for_each_task(planes, [&](int64_t plane) {
      sizes[plane] = Magnitudes<T>(read<T>(x) + plane * voxels, voxels);
    });
    for_each_task(B, [&](int64_t b) {
      Magnitudes<T> sample(nullptr, 0);
      for (int64_t c = 0; c < C; ++c) {
        sample.largest = std::max(sample.largest, sizes[b * C + c].largest);
        sample.sum += sizes[b * C + c].sum;
      }
      for (int64_t c = 0; c < C; ++c) {
        const Magnitudes<T>& plane = sizes[b * C + c];
        const double limit = kRange * std::max(plane.mean(voxels), sample.mean(C * voxels));
        if (plane.all && plane.largest <= limit) continue;
        of_[b].resize(static_cast<size_t>(voxels));
        const T* from = read<T>(x) + (b * C + c) * voxels;
        const auto bound = static_cast<T>(std::min(limit, kLargest<T>));
        for (int64_t i = 0; i < voxels; ++i) of_[b][i] |= !(std::abs(from[i]) <= bound);
      }
    });
  }

  bool in(int64_t sample) const { return !of_[sample].empty(); }
  bool at(int64_t sample, int64_t voxel) const { return of_[sample][voxel] != 0; }

 private:
  std::vector<std::vector<uint8_t>> of_;
};

// Whether weights are finite and not so large that their products overflow.
template <class T>
bool moderate(const Tensor& weight) {
  constexpr int64_t chunk = 1 << 15;
  const int64_t count = weight.numel();
  std::vector<uint8_t> fits(static_cast<size_t>((count + chunk - 1) / chunk));
  for_each_task(static_cast<int64_t>(fits.size()), [&](int64_t task) {
    const int64_t begin = task * chunk;
    const Magnitudes<T> sizes(read<T>(weight) + begin, std::min(chunk, count - begin));
    fits[task] = sizes.all && sizes.largest <= 0x1p20;
  });
  return std::find(fits.begin(), fits.end(), 0) == fits.end();
}

}  // namespace cmrfast::cpu

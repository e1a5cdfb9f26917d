// Blocks of a row whose taps are all inside: indices and fractions once for all channels, then
// interpolation and both gradients without bounds checks, four voxels at a time.
#pragma once

#include <cstring>
#include <type_traits>

#include "half.h"
#include "sampling.h"

namespace cmrfast::cpu {

constexpr int64_t kBlock = 64;  // voxels, few enough for float offsets from the block's base

template <class T, class Index, int DIMS>
struct Taps {
  int64_t count;             // voxels; the arrays are filled to a multiple of eight
  Index index[kBlock];       // of the first tap
  T fraction[DIMS][kBlock];  // along each axis

  Taps(const Row<DIMS>& row, int64_t k0, int64_t count) : count(count) {
    const int64_t padded = (count + 7) / 8 * 8;
    for (int64_t k = 0; k < padded; ++k) index[k] = 0;
    for (int a = 0; a < DIMS; ++a) {
      const double base = row.base[a] + static_cast<double>(k0) * row.step[a];
      const double whole = std::floor(base);
      const T rest = static_cast<T>(base - whole), step = static_cast<T>(row.step[a]);
      constexpr double far = 1 << 30;
      const auto low = static_cast<int32_t>(std::max(row.first(a) - whole, -far));
      const auto high = static_cast<int32_t>(std::min(row.last(a) - 1 - whole, far));
      const Index stride = static_cast<Index>(row.stride[a]);
      const auto first = static_cast<Index>(whole);
      T* along = fraction[a];
#pragma omp simd
      for (int64_t k = 0; k < padded; ++k) {
        const T t = rest + static_cast<T>(static_cast<int32_t>(k)) * step;
        int32_t at = static_cast<int32_t>(std::floor(t));
        at = at < low ? low : at;  // rounding may cross the border, memory accesses must not
        at = at > high ? high : at;
        along[k] = t - static_cast<T>(at);
        index[k] += (first + at) * stride;
      }
    }
  }
};

template <class T>
struct Vectors {
  typedef T Two __attribute__((vector_size(2 * sizeof(T))));
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
};

template <class T>
using Four = typename Vectors<T>::Four;

template <class V, class T>
V load(const T* from) {
  V vector;
  std::memcpy(&vector, from, sizeof(V));
  return vector;
}

// The two neighbours along the last axis of four positions: one load of two values each, unless
// they are read from half precision.
template <class T>
struct Sides {
  Four<T> left, right;

  template <class S, class Index>
  Sides(const S* image, const Index* index) {
    for (int v = 0; v < 4; ++v) {
      left[v] = to_real(image[index[v]]);
      right[v] = to_real(image[index[v] + 1]);
    }
  }

  template <class Index>
  Sides(const T* image, const Index* index) {
    using Two = typename Vectors<T>::Two;
    const Two a = load<Two>(image + index[0]), b = load<Two>(image + index[1]);
    const Two c = load<Two>(image + index[2]), d = load<Two>(image + index[3]);
#if defined(__clang__) || __GNUC__ >= 12
    const Four<T> ab = __builtin_shufflevector(a, b, 0, 1, 2, 3);
    const Four<T> cd = __builtin_shufflevector(c, d, 0, 1, 2, 3);
    left = __builtin_shufflevector(ab, cd, 0, 2, 4, 6);
    right = __builtin_shufflevector(ab, cd, 1, 3, 5, 7);
#else
    left = Four<T>{a[0], b[0], c[0], d[0]};
    right = Four<T>{a[1], b[1], c[1], d[1]};
#endif
  }
};

template <class V>
V blend(V a, V b, V fraction) {
  return a + fraction * (b - a);
}

// Calls body(k, n) for groups of four voxels of a block; the last group may have fewer. Prefetches
// what later rows read, since hardware prefetchers do not follow a rotated row.
template <class S, class T, class Index, int DIMS, class Body>
void for_each_four(const S* image, const Row<DIMS>& row, const Taps<T, Index, DIMS>& taps,
                   const Body& body) {
  const auto ahead = row.ahead * static_cast<int64_t>(sizeof(S));
  int64_t k = 0;
  for (; k + 4 <= taps.count; k += 4) {
    prefetch(image + taps.index[k], ahead, 1);
    body(k, std::integral_constant<int64_t, 4>{});
  }
  if (k < taps.count) body(k, taps.count - k);
}

template <class S, class T, class Index, int DIMS>
void blend_block(const S* image, const Row<DIMS>& row, const Taps<T, Index, DIMS>& taps, T* out) {
  for_each_four(image, row, taps, [&](int64_t k, auto n) {
    const auto fraction_of = [&](int axis) { return load<Four<T>>(taps.fraction[axis] + k); };
    const auto plane = [&](const S* at) {
      const Sides<T> top(at, taps.index + k), low(at + row.stride[DIMS - 2], taps.index + k);
      const Four<T> down = fraction_of(DIMS - 2);
      return blend(blend(top.left, low.left, down), blend(top.right, low.right, down),
                   fraction_of(DIMS - 1));
    };
    Four<T> value = plane(image);
    if constexpr (DIMS == 3) value = blend(value, plane(image + row.stride[0]), fraction_of(0));
    std::memcpy(out + k, &value, sizeof(T) * static_cast<size_t>(n));
  });
}

// Gradients of a block's coordinates: sums over channels of g * d value / d coordinate.
template <class T, int DIMS>
struct CoordinateGrads {
  T along[DIMS][kBlock] = {};

  // Adds the sums over the block of the gradients and of the gradients times k.
  void sums(int64_t k0, int64_t count, double* sum, double* moment) const {
    for (int a = 0; a < DIMS; ++a) {
      double plain = 0, weighted = 0;
#pragma omp simd reduction(+ : plain, weighted)
      for (int64_t k = 0; k < count; ++k) {
        plain += along[a][k];
        weighted += along[a][k] * static_cast<double>(k0 + k);
      }
      sum[a] += plain;
      moment[a] += weighted;
    }
  }
};

template <class T, class Index, int DIMS>
void coordinate_grads_block(const T* image, const Row<DIMS>& row, const Taps<T, Index, DIMS>& taps,
                            const T* grad, CoordinateGrads<T, DIMS>& coordinate_grads) {
  for_each_four(image, row, taps, [&](int64_t k, auto n) {
    Four<T> g = {};
    std::memcpy(&g, grad + k, sizeof(T) * static_cast<size_t>(n));
    const auto fraction_of = [&](int axis) { return load<Four<T>>(taps.fraction[axis] + k); };
    const auto add = [&](int axis, Four<T> value) {
      T* to = coordinate_grads.along[axis] + k;
      value = load<Four<T>>(to) + g * value;
      std::memcpy(to, &value, sizeof(value));
    };
    const Four<T> down = fraction_of(DIMS - 2), right = fraction_of(DIMS - 1);
    const Sides<T> top(image, taps.index + k), low(image + row.stride[DIMS - 2], taps.index + k);
    Four<T> left_side = blend(top.left, low.left, down);
    Four<T> right_side = blend(top.right, low.right, down);
    Four<T> across = blend(low.left - top.left, low.right - top.right, right);
    if constexpr (DIMS == 3) {
      const T* back = image + row.stride[0];
      const Sides<T> back_top(back, taps.index + k), back_low(back + row.stride[1], taps.index + k);
      const Four<T> through = fraction_of(0);
      const Four<T> back_left = blend(back_top.left, back_low.left, down);
      const Four<T> back_right = blend(back_top.right, back_low.right, down);
      add(0, blend(back_left - left_side, back_right - right_side, right));
      across = blend(across,
                     blend(back_low.left - back_top.left, back_low.right - back_top.right, right),
                     through);
      left_side = blend(left_side, back_left, through);
      right_side = blend(right_side, back_right, through);
    }
    add(DIMS - 2, across);
    add(DIMS - 1, right_side - left_side);
  });
}

// Adds a block's gradient to the voxels it was interpolated from. Neighbours add to the same voxel
// and would wait for one another, so the four quarters of the block take turns.
template <class T, class Index, int DIMS>
void scatter_block(const T* grad, const Row<DIMS>& row, const Taps<T, Index, DIMS>& taps,
                   T* image) {
  using Two = typename Vectors<T>::Two;
  const auto add = [&](int64_t k) {
    const T right = taps.fraction[DIMS - 1][k], down = taps.fraction[DIMS - 2][k];
    const Two sides = grad[k] * Two{1 - right, right};
    const auto pair = [&](int64_t offset, Two value) {
      T* to = image + taps.index[k] + offset;
      value += load<Two>(to);
      std::memcpy(to, &value, sizeof(value));
    };
    const auto plane = [&](int64_t offset, Two value) {
      const Two low = down * value;
      pair(offset, value - low);
      pair(offset + row.stride[DIMS - 2], low);
    };
    if constexpr (DIMS == 3) {
      const Two back = taps.fraction[0][k] * sides;
      plane(0, sides - back);
      plane(row.stride[0], back);
    } else {
      plane(0, sides);
    }
  };
  const int64_t quarter = taps.count / 4;
  for (int64_t k = 0; k < quarter; ++k) {
    if (k % 4 == 0) {
      for (int64_t s = 0; s < 4; ++s) {
        prefetch(image + taps.index[s * quarter + k], row.ahead * sizeof(T), 1);
      }
    }
    for (int64_t s = 0; s < 4; ++s) add(s * quarter + k);
  }
  for (int64_t k = 4 * quarter; k < taps.count; ++k) add(k);
}

}  // namespace cmrfast::cpu

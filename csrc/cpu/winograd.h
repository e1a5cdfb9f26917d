// Winograd's F(2, 3) in depth and height (Lavin and Gray, 2016): 2 x 2 rows of output from 4 x 4 of
// input with 16 products a tap along the width, where a plain sum takes 36.
//
// The width is not transformed. The rows of a band follow one another on a flat line, separated by
// a zero, so that a tap is a shift of the line and borders need no check; sums at the zeros are
// never used.
#pragma once

#include <cstring>
#include <vector>

#include "common.h"
#include "matmul.h"

namespace cmrfast::cpu {

constexpr int kLines = 16;  // per channel, one for each product

// A volume (B, C, D, H, W) as tasks: two planes of some pairs of rows each.
struct Bands {
  int64_t B, C, D, H, W, pairs, per_plane, count;

  // As many pairs of rows as leave the lines of all channels in a core's share of the cache.
  Bands(const Tensor& x, int64_t channels)
      : B(x.size(0)), C(x.size(1)), D(x.size(2)), H(x.size(3)), W(x.size(4)) {
    constexpr int64_t cache = int64_t{1} << 20;
    const int64_t all = (H + 1) / 2;
    const int64_t row = std::max<int64_t>(1, kLines * channels * pitch() * x.element_size());
    const int64_t fit = std::max<int64_t>(1, cache / row);
    per_plane = (all + fit - 1) / fit;
    pairs = per_plane ? (all + per_plane - 1) / per_plane : 0;
    count = x.numel() ? B * ((D + 1) / 2) * per_plane : 0;
  }
  int64_t pitch() const { return W + 1; }
  // A zero, the rows, and what the widest step of a kernel reads and writes past their end, in an
  // odd number of blocks of 16: lines begin at a vector and do not share a cache set.
  int64_t line() const { return ((1 + pairs * pitch() + 192 + 15) / 16 | 1) * 16; }
  int64_t size() const { return D * H * W; }
};

// Lines of zeros that begin at a vector.
template <class T>
class Lines {
 public:
  Lines(const Bands& b, int64_t count)
      : memory_(static_cast<size_t>(count * b.line() / Tile<T>::lanes)) {}
  T* data() { return reinterpret_cast<T*>(memory_.data()); }

 private:
  struct Block {
    Vector<T> vector{};
  };
  std::vector<Block> memory_;
};

// Calls body(first) for runs of `count` from 0 to n, at least `count`. The last run ends at n and
// may overlap the one before.
template <class Body>
void for_each_run(int64_t n, int64_t count, const Body& body) {
  for (int64_t first = 0; first < n; first += count) body(std::min(first, n - count));
}

struct Band {
  int64_t sample, z, y, pairs;
  Band(const Bands& b, int64_t task)
      : sample(task / (b.per_plane * ((b.D + 1) / 2))),
        z(task / b.per_plane % ((b.D + 1) / 2) * 2),
        y(task % b.per_plane * b.pairs * 2),
        pairs(std::clamp<int64_t>((b.H - y + 1) / 2, 0, b.pairs)) {}
};

// Loads n values, followed by zeros.
template <class T>
Vector<T> load_some(const T* from, int64_t n) {
  Vector<T> value{};
  std::memcpy(&value, from, static_cast<size_t>(n) * sizeof(T));
  return value;
}

inline constexpr auto input_transform = [](auto* d, int step) {
  const auto d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
  d[0] = d0 - d2;
  d[step] = d1 + d2;
  d[2 * step] = d2 - d1;
  d[3 * step] = d1 - d3;
};

// The transpose of the output transform.
inline constexpr auto grad_transform = [](auto* d, int step) {
  const auto g0 = d[0], g1 = d[step];
  d[step] = g0 + g1;
  d[2 * step] = g0 - g1;
  d[3 * step] = -g1;
};

inline constexpr auto output_transform = [](auto* d, int step) {
  const auto m0 = d[0], m1 = d[step], m2 = d[2 * step], m3 = d[3 * step];
  d[0] = m0 + m1 + m2;
  d[step] = m1 - m2 - m3;
};

// The 16 lines, `stride` apart, of one channel of a band: SIDE x SIDE rows at a time, from `before`
// planes and rows ahead. `zeros` holds a row.
template <int SIDE, class T, class Transform>
void to_lines(const Bands& b, const Band& band, const T* channel, int before, const T* zeros, T* to,
              int64_t stride, const Transform& transform) {
  constexpr int64_t lanes = Tile<T>::lanes;
  for (int64_t pair = 0; pair < band.pairs; ++pair, to += b.pitch()) {
    const T* rows[SIDE][SIDE];
    for (int i = 0; i < SIDE; ++i) {
      for (int j = 0; j < SIDE; ++j) {
        const int64_t z = band.z + i - before, y = band.y + 2 * pair + j - before;
        const bool inside = z >= 0 && z < b.D && y >= 0 && y < b.H;
        rows[i][j] = inside ? channel + (z * b.H + y) * b.W : zeros;
      }
    }
    const auto step = [&](int64_t x, const auto& load) {
      Vector<T> d[kLines];
#pragma GCC unroll 4
      for (int i = 0; i < SIDE; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < SIDE; ++j) d[4 * i + j] = load(rows[i][j] + x);
        transform(d + 4 * i, 1);
      }
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) transform(d + j, 4);
#pragma GCC unroll 16
      for (int f = 0; f < kLines; ++f) std::memcpy(to + f * stride + x, &d[f], sizeof(d[f]));
    };
    if (b.W < lanes) {
      step(0, [&](const T* at) { return load_some(at, b.W); });
    } else {
      for_each_run(b.W, lanes,
                   [&](int64_t x) { step(x, [](const T* at) { return Tile<T>::load(at); }); });
    }
  }
}

// Rows of one channel of the output from its 16 lines; `finish` maps sums to values.
template <class T, class Finish>
void from_lines(const Bands& b, const Band& band, const T* from, int64_t stride, T* channel,
                const Finish& finish) {
  constexpr int64_t lanes = Tile<T>::lanes;
  for (int64_t pair = 0; pair < band.pairs; ++pair, from += b.pitch()) {
    const auto step = [&](int64_t x, const auto& store) {
      Vector<T> d[kLines];
#pragma GCC unroll 16
      for (int f = 0; f < kLines; ++f) d[f] = Tile<T>::load(from + f * stride + x);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) output_transform(d + j, 4);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        output_transform(d + 4 * i, 1);
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
          const int64_t z = band.z + i, y = band.y + 2 * pair + j;
          if (z < b.D && y < b.H) store(channel + (z * b.H + y) * b.W + x, finish(d[4 * i + j]));
        }
      }
    };
    if (b.W < lanes) {
      step(0, [&](T* to, Vector<T> value) {
        std::memcpy(to, &value, static_cast<size_t>(b.W) * sizeof(T));
      });
    } else {
      for_each_run(b.W, lanes, [&](int64_t x) {
        step(x, [](T* to, Vector<T> value) { std::memcpy(to, &value, sizeof(value)); });
      });
    }
  }
}

// Row k of the transform of the weights: the coefficients of product k for the three taps.
constexpr double kWeightTransform[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};

}  // namespace cmrfast::cpu

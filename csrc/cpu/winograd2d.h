// Winograd's transforms of images and weights (Lavin and Gray, 2016): a tile of 6 x 6 pixels gives
// 4 x 4 outputs of a 3 x 3 kernel, or 2 x 2 of a 5 x 5 kernel, with 36 products per pair of
// channels instead of 144 or 100.
#pragma once

#include <array>
#include <cstring>

#include "common.h"
#include "matmul.h"
#include "tiles2d.h"

namespace cmrfast::cpu {
namespace {  // for same_conv2d.cpp alone: what it calls once is inlined

constexpr int kSide = 6, kProducts = kSide * kSide;

// Polynomials are evaluated at 0, +-A, +-B and infinity. With these points the rounding error is
// twice that of direct summation; with the usual 1 and 2 it is four times as large.
constexpr double kA = 0.75, kB = 1.5, kA2 = kA * kA, kB2 = kB * kB;

// In place on six vectors `step` apart.
template <class T>
__attribute__((always_inline)) inline void transform_input(Vector<T>* d, int step) {
  constexpr T a = kA, b = kB, a2 = kA2, b2 = kB2, sum = kA2 + kB2, product = kA2 * kB2;
  const auto d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step],
             d5 = d[5 * step];
  const auto even_a = d4 - b2 * d2, odd_a = a * (d3 - b2 * d1);
  const auto even_b = d4 - a2 * d2, odd_b = b * (d3 - a2 * d1);
  d[0] = product * d0 - sum * d2 + d4;
  d[step] = even_a + odd_a;
  d[2 * step] = even_a - odd_a;
  d[3 * step] = even_b + odd_b;
  d[4 * step] = even_b - odd_b;
  d[5 * step] = product * d1 - sum * d3 + d5;
}

// Six products to OUT outputs.
template <int OUT, class T>
__attribute__((always_inline)) inline void transform_output(Vector<T>* m, int step) {
  constexpr T a = kA, b = kB, a2 = kA2, b2 = kB2, a3 = kA * kA2, b3 = kB * kB2;
  const auto m0 = m[0], m1 = m[step], m2 = m[2 * step], m3 = m[3 * step], m4 = m[4 * step],
             m5 = m[5 * step];
  const auto even_a = m1 + m2, odd_a = m1 - m2, even_b = m3 + m4, odd_b = m3 - m4;
  m[0] = m0 + even_a + even_b;
  m[step] = a * odd_a + b * odd_b;
  if constexpr (OUT == 2) {
    m[step] += m5;
  } else {
    m[2 * step] = a2 * even_a + b2 * even_b;
    m[3 * step] = a3 * odd_a + b3 * odd_b + m5;
  }
}

// The transpose of the output transform: OUT gradients to six.
template <int OUT, class T>
__attribute__((always_inline)) inline void transform_grad(Vector<T>* g, int step) {
  constexpr T a = kA, b = kB, a2 = kA2, b2 = kB2, a3 = kA * kA2, b3 = kB * kB2;
  auto even_a = g[0], even_b = g[0], odd_a = a * g[step], odd_b = b * g[step], last = g[step];
  if constexpr (OUT == 4) {
    last = g[3 * step];
    even_a += a2 * g[2 * step];
    even_b += b2 * g[2 * step];
    odd_a += a3 * last;
    odd_b += b3 * last;
  }
  g[step] = even_a + odd_a;
  g[2 * step] = even_a - odd_a;
  g[3 * step] = even_b + odd_b;
  g[4 * step] = even_b - odd_b;
  g[5 * step] = last;
}

// kTapCoefficients<TAPS>[p][i]: the coefficient of product p for tap i.
template <int TAPS>
constexpr auto kTapCoefficients = [] {
  constexpr double points[5] = {0, kA, -kA, kB, -kB};
  constexpr double of_a = 0.5 / (kA2 * (kA2 - kB2)), of_b = 0.5 / (kB2 * (kB2 - kA2));
  constexpr double scales[5] = {1 / (kA2 * kB2), of_a, of_a, of_b, of_b};
  std::array<std::array<double, TAPS>, kSide> matrix{};
  for (int p = 0; p < 5; ++p) {
    double power = scales[p];
    for (int i = 0; i < TAPS; ++i, power *= points[p]) matrix[p][i] = power;
  }
  matrix[5][TAPS - 1] = 1;
  return matrix;
}();

// Channels, and zeros up to whole columns of a product.
template <class T>
constexpr int64_t padded(int64_t channels) {
  return (channels + Tile<T>::cols - 1) / Tile<T>::cols * Tile<T>::cols;
}

// The transformed tiles of some rows: (kProducts, tiles, channels padded to whole columns), with a
// gap between products, which would otherwise all fall into one cache set.
template <class T>
struct Products {
  int64_t channels, stride;
  Tensor memory;
  T* data;

  Products(const Tensor& like, int64_t tiles, int64_t of)
      : channels(padded<T>(of)),
        stride(tiles * channels + Tile<T>::cols),
        memory(fresh(like, {kProducts * stride}, like.scalar_type())),
        data(write<T>(memory)) {}
  T* at(int64_t product, int64_t tile) const { return data + product * stride + tile * channels; }
};

// Transforms a row of tiles of (C, H, W) and writes it to `to`, from tile `first` on. FROM is the
// side of the tiles: that of the input or of the gradient.
template <int FROM, class T, class Transform>
void to_products(const TileGrid& grid, const TileLine& line, const T* image, int64_t C,
                 Strip<T>& strip, int64_t first, const Products<T>& to,
                 const Transform& transform) {
  constexpr int64_t lanes = Tile<T>::lanes;
  for (int64_t c = 0; c < C; c += lanes) {
    strip.read(image, c, C, line);
    for (int64_t tile = 0; tile < grid.per_row; ++tile) {
      Vector<T> d[kProducts];
#pragma GCC unroll 6
      for (int i = 0; i < FROM; ++i) {
#pragma GCC unroll 6
        for (int j = 0; j < FROM; ++j)
          d[kSide * i + j] = Tile<T>::load(strip.pixel(i, tile * grid.out + j));
        transform(d + kSide * i, 1);
      }
#pragma GCC unroll 6
      for (int j = 0; j < kSide; ++j) transform(d + j, kSide);
      T* out = to.at(0, first + tile) + c;
#pragma GCC unroll 36
      for (int f = 0; f < kProducts; ++f) std::memcpy(out + f * to.stride, &d[f], sizeof(d[f]));
    }
  }
}

// Transforms a row of tiles of products, from tile `first` on, to pixels of `sums`, for the vector
// of channels that begins at `channel`.
template <int OUT, class T>
void from_products(const Products<T>& from, int64_t first, int64_t channel, int64_t tiles,
                   Vector<T> bias, Strip<T>& sums) {
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const T* m = from.at(0, first + tile) + channel;
    Vector<T> d[kProducts];
#pragma GCC unroll 36
    for (int f = 0; f < kProducts; ++f) d[f] = Tile<T>::load(m + f * from.stride);
#pragma GCC unroll 6
    for (int j = 0; j < kSide; ++j) transform_output<OUT, T>(d + j, kSide);
#pragma GCC unroll 4
    for (int i = 0; i < OUT; ++i) {
      transform_output<OUT, T>(d + kSide * i, 1);
#pragma GCC unroll 4
      for (int j = 0; j < OUT; ++j) {
        const Vector<T> value = d[kSide * i + j] + bias;
        std::memcpy(sums.pixel(i, tile * OUT + j), &value, sizeof(value));
      }
    }
  }
}

// The transformed weights as the product reads them: (kProducts, columns of O, C, O in a column).
// Mirrored weights, for the gradient of the input, are (C, O, taps) with the taps reversed.
template <int TAPS, class T>
Tensor packed_weights(const Tensor& weight, int64_t O, int64_t C, bool mirrored) {
  constexpr int64_t lanes = Tile<T>::lanes, cols = Tile<T>::cols, all = TAPS * TAPS;
  Tensor to = fresh(weight, {kProducts * padded<T>(O) * C}, weight.scalar_type());
  const int64_t along_o = mirrored ? all : C * all, along_c = mirrored ? O * all : all;
  for_each_task(padded<T>(O) / lanes, [&](int64_t task) {
    const int64_t first = task * lanes, count = std::clamp<int64_t>(O - first, 0, lanes);
    T* column = write<T>(to) + first / cols * cols * C + first % cols;
    for (int64_t c = 0; c < C; ++c) {
      T taps[all][lanes]{};
      for (int64_t l = 0; l < count; ++l) {
        const T* from = read<T>(weight) + (first + l) * along_o + c * along_c;
        for (int64_t k = 0; k < all; ++k) taps[mirrored ? all - 1 - k : k][l] = from[k];
      }
      Vector<T> half[kSide][TAPS]{};
      for (int p = 0; p < kSide; ++p) {
        for (int i = 0; i < TAPS; ++i) {
          const T coefficient = kTapCoefficients<TAPS>[p][i];
          for (int j = 0; j < TAPS; ++j)
            half[p][j] += coefficient * Tile<T>::load(taps[i * TAPS + j]);
        }
      }
      for (int p = 0; p < kSide; ++p) {
        for (int q = 0; q < kSide; ++q) {
          Vector<T> value{};
          for (int j = 0; j < TAPS; ++j) {
            value += static_cast<T>(kTapCoefficients<TAPS>[q][j]) * half[p][j];
          }
          std::memcpy(column + (p * kSide + q) * padded<T>(O) * C + c * cols, &value,
                      sizeof(value));
        }
      }
    }
  });
  return to;
}

}  // namespace
}  // namespace cmrfast::cpu

// Images as overlapping tiles, channels last: a vector holds one pixel of as many channels as it
// has lanes.
#pragma once

#include <cstring>
#include <utility>
#include <vector>

#include "common.h"
#include "matmul.h"

namespace cmrfast::cpu {

// Interleaves the first halves of two vectors, or the last.
template <bool LAST, class V, int... I>
V interleave(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int lanes = sizeof...(I), from = LAST ? lanes / 2 : 0;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (from + I / 2 + I % 2 * lanes)...);
#else
  using Index = decltype(a < b);
  return __builtin_shuffle(a, b, Index{(from + I / 2 + I % 2 * lanes)...});
#endif
}

// Transposes as many vectors as one has lanes. Inlined, so that they stay in registers.
template <class T>
__attribute__((always_inline)) inline void transpose(Vector<T>* v) {
  constexpr int lanes = Tile<T>::lanes;
  constexpr auto all = std::make_integer_sequence<int, lanes>{};
#pragma GCC unroll 4
  for (int step = 1; step < lanes; step *= 2) {
    Vector<T> next[lanes];
#pragma GCC unroll 8
    for (int i = 0; i < lanes / 2; ++i) {
      next[2 * i] = interleave<false>(v[i], v[i + lanes / 2], all);
      next[2 * i + 1] = interleave<true>(v[i], v[i + lanes / 2], all);
    }
    std::memcpy(v, next, sizeof(next));
  }
}

// Images (B, C, H, W) as tiles of out x out output pixels, `dilation` pixels apart. Rows of tiles
// are numbered across images and, within an image, across the interleaved grids of such pixels.
struct TileGrid {
  int64_t B, H, W, dilation, out, grids_y, grids_x, rows, per_row;

  TileGrid(const Tensor& x, int64_t dilation, int64_t out)
      : B(x.size(0)),
        H(x.size(2)),
        W(x.size(3)),
        dilation(dilation),
        out(out),
        grids_y(std::min(dilation, H)),
        grids_x(std::min(dilation, W)) {
    const int64_t pixels = dilation * out;
    rows = (H + pixels - 1) / pixels;
    per_row = (W + pixels - 1) / pixels;
  }
  int64_t lines() const { return B * grids_y * grids_x * rows; }
};

// A row of tiles: its image and its first pixel.
struct TileLine {
  int64_t sample, y, x, columns;
  TileLine(const TileGrid& g, int64_t line)
      : sample(line / (g.grids_y * g.grids_x * g.rows)),
        y(line % g.rows * g.dilation * g.out + line / (g.rows * g.grids_x) % g.grids_y),
        x(line / g.rows % g.grids_x),
        columns(std::max<int64_t>(0, (g.W - x + g.dilation - 1) / g.dilation)) {}
};

// The pixels under a row of tiles of `side`, `before` of them before the first output pixel:
// (side, pitch, lanes), one vector of channels at a time.
template <class T>
class Strip {
 public:
  static constexpr int64_t lanes = Tile<T>::lanes;

  Strip(const TileGrid& grid, int side, int before)
      : grid_(grid),
        side_(side),
        before_(before),
        pitch_(before + round_up(grid.out * grid.per_row + side)),
        pixels_(static_cast<size_t>(side * pitch_ * lanes)),
        zeros_(static_cast<size_t>(grid.W)) {}

  // Reads channels first, first + 1, ... of (channels, H, W), with zeros outside.
  void read(const T* image, int64_t first, int64_t channels, const TileLine& line) {
    for (int64_t i = 0; i < side_; ++i) {
      const int64_t y = line.y + (i - before_) * grid_.dilation;
      T* to = pixel(i, before_);
      if (y < 0 || y >= grid_.H) {
        std::fill_n(to, (pitch_ - before_) * lanes, T{0});
        continue;
      }
      const T* from[lanes];
      for (int64_t l = 0; l < lanes; ++l) {
        const bool exists = first + l < channels;
        from[l] = exists ? image + ((first + l) * grid_.H + y) * grid_.W + line.x : zeros_.data();
      }
      for (int64_t j = 0; j < pitch_ - before_; j += lanes, to += lanes * lanes) {
        const int64_t count = std::clamp<int64_t>(line.columns - j, 0, lanes);
        if (count == lanes && grid_.dilation == 1) {
          Vector<T> v[lanes];
#pragma GCC unroll 16
          for (int64_t l = 0; l < lanes; ++l) v[l] = Tile<T>::load(from[l] + j);
          transpose<T>(v);
          std::memcpy(to, v, sizeof(v));
        } else {
          for (int64_t n = 0; n < count; ++n) {
            const int64_t at = (j + n) * grid_.dilation;
            for (int64_t l = 0; l < lanes; ++l) to[n * lanes + l] = from[l][at];
          }
          std::fill(to + count * lanes, to + lanes * lanes, T{0});
        }
      }
    }
  }

  // Writes the pixels that are inside to channels first, first + 1, ... of (channels, H, W).
  void write(T* image, int64_t first, int64_t channels, const TileLine& line) {
    const int64_t last = std::min(channels - first, lanes);
    for (int64_t i = 0; i < side_; ++i) {
      const int64_t y = line.y + i * grid_.dilation;
      if (y >= grid_.H) return;
      for (int64_t j = 0; j < line.columns; j += lanes) {
        Vector<T> v[lanes];
        std::memcpy(v, pixel(i, j), sizeof(v));
        transpose<T>(v);
        const int64_t count = std::min(line.columns - j, lanes);
        for (int64_t l = 0; l < last; ++l) {
          T* to = image + ((first + l) * grid_.H + y) * grid_.W + line.x + j * grid_.dilation;
          if (count == lanes && grid_.dilation == 1) {
            std::memcpy(to, &v[l], sizeof(v[l]));
          } else {
            for (int64_t n = 0; n < count; ++n) to[n * grid_.dilation] = v[l][n];
          }
        }
      }
    }
  }

  T* pixel(int64_t row, int64_t column) { return pixels_.data() + (row * pitch_ + column) * lanes; }

 private:
  static int64_t round_up(int64_t n) { return (n + lanes - 1) / lanes * lanes; }

  const TileGrid& grid_;
  int64_t side_, before_, pitch_;
  std::vector<T> pixels_, zeros_;
};

}  // namespace cmrfast::cpu

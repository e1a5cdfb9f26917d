// Tiles of an image that hold a far pixel (wide_range.h), and their sums without transforms.
#pragma once

#include <cstring>
#include <vector>

#include "common.h"
#include "matmul.h"
#include "tiles2d.h"
#include "wide_range.h"
#include "winograd2d.h"

namespace cmrfast::cpu {
namespace {  // for same_conv2d.cpp alone: what it calls once is inlined

// Which tiles hold a far pixel (wide_range.h), and are summed directly.
class FarTiles {
 public:
  struct Tile {
    int64_t line, tile;
  };

  explicit FarTiles(const TileGrid& grid) : grid_(grid) {}

  // Adds the tiles of `side` pixels, `before` of them before the first output pixel.
  template <class T>
  void add(const FarPixels<T>& far, int side, int before) {
    for (int64_t n = 0; n < grid_.lines(); ++n) {
      const TileLine line(grid_, n);
      for (int64_t tile = 0; far.in(line.sample) && tile < grid_.per_row; ++tile) {
        for (int i = 0; i < side; ++i) {
          for (int j = 0; j < side; ++j) {
            const int64_t y = line.y + (i - before) * grid_.dilation;
            const int64_t x = line.x + (tile * grid_.out + j - before) * grid_.dilation;
            const bool inside = y >= 0 && y < grid_.H && x >= 0 && x < grid_.W;
            if (inside && far.at(line.sample, y * grid_.W + x)) mark(n, tile);
          }
        }
      }
    }
  }
  void add_all() {
    for (int64_t n = 0; n < grid_.lines(); ++n) {
      for (int64_t tile = 0; tile < grid_.per_row; ++tile) mark(n, tile);
    }
  }
  bool has(int64_t line, int64_t tile) const {
    return !marked_.empty() && marked_[line * grid_.per_row + tile];
  }
  std::vector<Tile> list() const {
    std::vector<Tile> tiles;
    for (int64_t n = 0; n < static_cast<int64_t>(marked_.size()); ++n) {
      if (marked_[n]) tiles.push_back({n / grid_.per_row, n % grid_.per_row});
    }
    return tiles;
  }

 private:
  void mark(int64_t line, int64_t tile) {
    marked_.resize(static_cast<size_t>(grid_.lines() * grid_.per_row));
    marked_[line * grid_.per_row + tile] = 1;
  }

  const TileGrid& grid_;
  std::vector<uint8_t> marked_;  // empty if there are none
};

// Calls body(pixel of the tile, offset in an image or -1 outside) for a tile of `side` pixels.
template <class Body>
void for_each_pixel(const TileGrid& grid, const FarTiles::Tile& tile, int side, int before,
                    const Body& body) {
  const TileLine line(grid, tile.line);
  for (int i = 0; i < side; ++i) {
    for (int j = 0; j < side; ++j) {
      const int64_t y = line.y + (i - before) * grid.dilation;
      const int64_t x = line.x + (tile.tile * grid.out + j - before) * grid.dilation;
      const bool inside = y >= 0 && y < grid.H && x >= 0 && x < grid.W;
      body(side * i + j, inside ? y * grid.W + x : -1);
    }
  }
}

// The outputs of some tiles, summed tap by tap.
template <int TAPS, class T>
void forward_directly(const TileGrid& grid, const std::vector<FarTiles::Tile>& tiles,
                      const Tensor& x, const Tensor& weight, const Tensor& bias, bool mirrored,
                      Tensor& out) {
  constexpr int OUT = kSide + 1 - TAPS, all = TAPS * TAPS;
  constexpr int64_t lanes = Tile<T>::lanes;
  const int64_t C = x.size(1), O = out.size(1), image = grid.H * grid.W, width = padded<T>(O);
  std::vector<T> weights(static_cast<size_t>(C * all * width));  // (C, taps, O)
  for (int64_t c = 0; c < C; ++c) {
    for (int64_t o = 0; o < O; ++o) {
      const T* from = read<T>(weight) + (mirrored ? c * O + o : o * C + c) * all;
      for (int k = 0; k < all; ++k)
        weights[(c * all + k) * width + o] = from[mirrored ? all - 1 - k : k];
    }
  }
  const auto count = static_cast<int64_t>(tiles.size());
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> pixels(static_cast<size_t>(C * kProducts));
    bool inside[kProducts];  // a tap outside is left out: 0 times an infinite weight is not 0
    for (int64_t n = begin; n < end; ++n) {
      const int64_t sample = TileLine(grid, tiles[n].line).sample;
      const T* from = read<T>(x) + sample * C * image;
      for_each_pixel(grid, tiles[n], kSide, TAPS / 2, [&](int at, int64_t offset) {
        inside[at] = offset >= 0;
        for (int64_t c = 0; c < C; ++c)
          pixels[c * kProducts + at] = offset < 0 ? T{0} : from[c * image + offset];
      });
      for (int64_t o = 0; o < O; o += lanes) {
        T shift[lanes]{};
        std::copy_n(read<T>(bias) + o, std::min(O - o, lanes), shift);
        Vector<T> sums[OUT * OUT];
        for (auto& sum : sums) sum = Tile<T>::load(shift);
        for (int64_t c = 0; c < C; ++c) {
          for (int k = 0; k < all; ++k) {
            const Vector<T> w = Tile<T>::load(weights.data() + (c * all + k) * width + o);
            const T* first = pixels.data() + c * kProducts + k / TAPS * kSide + k % TAPS;
#pragma GCC unroll 16
            for (int p = 0; p < OUT * OUT; ++p) {
              const int at = p / OUT * kSide + p % OUT;
              if (inside[k / TAPS * kSide + k % TAPS + at]) sums[p] += first[at] * w;
            }
          }
        }
        T* to = write<T>(out) + (sample * O + o) * image;
        for_each_pixel(grid, tiles[n], OUT, 0, [&](int at, int64_t offset) {
          for (int64_t l = 0; offset >= 0 && l < std::min(O - o, lanes); ++l)
            to[l * image + offset] = sums[at][l];
        });
      }
    }
  });
}

// Adds the gradient of the weight from some tiles, summed pixel by pixel.
template <int TAPS, class T>
void backward_directly(const TileGrid& grid, const std::vector<FarTiles::Tile>& tiles,
                       const Tensor& x, const Tensor& grad, Tensor& weights) {
  constexpr int OUT = kSide + 1 - TAPS, all = TAPS * TAPS;
  constexpr int64_t lanes = Tile<T>::lanes;
  const int64_t C = x.size(1), O = grad.size(1), image = grid.H * grid.W, width = padded<T>(O);
  const auto count = static_cast<int64_t>(tiles.size());
  std::vector<T> grads(static_cast<size_t>(count * OUT * OUT * width));  // (tiles, pixels, O)
  std::vector<uint8_t> exists(static_cast<size_t>(count * OUT * OUT));
  for_each_task(count, [&](int64_t n) {
    const T* from = read<T>(grad) + TileLine(grid, tiles[n].line).sample * O * image;
    T* to = grads.data() + n * OUT * OUT * width;
    for_each_pixel(grid, tiles[n], OUT, 0, [&](int at, int64_t offset) {
      exists[n * OUT * OUT + at] = offset >= 0;
      for (int64_t o = 0; offset >= 0 && o < O; ++o) to[at * width + o] = from[o * image + offset];
    });
  });
  for_each_task(C, [&](int64_t c) {
    std::vector<T> sums(static_cast<size_t>(all * width));  // (taps, O)
    for (int64_t n = 0; n < count; ++n) {
      T pixels[kProducts];
      bool inside[kProducts];  // 0 times an infinite number is not 0
      const T* from = read<T>(x) + (TileLine(grid, tiles[n].line).sample * C + c) * image;
      for_each_pixel(grid, tiles[n], kSide, TAPS / 2, [&](int at, int64_t offset) {
        inside[at] = offset >= 0;
        pixels[at] = offset < 0 ? T{0} : from[offset];
      });
      for (int64_t o = 0; o < width; o += lanes) {
        const T* g = grads.data() + n * OUT * OUT * width + o;
        for (int k = 0; k < all; ++k) {
          T* to = sums.data() + k * width + o;
          Vector<T> sum = Tile<T>::load(to);
          const T* first = pixels + k / TAPS * kSide + k % TAPS;
#pragma GCC unroll 16
          for (int p = 0; p < OUT * OUT; ++p) {
            const int at = p / OUT * kSide + p % OUT;
            if (exists[n * OUT * OUT + p] && inside[k / TAPS * kSide + k % TAPS + at])
              sum += first[at] * Tile<T>::load(g + p * width);
          }
          std::memcpy(to, &sum, sizeof(sum));
        }
      }
    }
    for (int64_t o = 0; o < O; ++o) {
      for (int k = 0; k < all; ++k) {
        write<T>(weights)[(o * C + c) * all + k] += sums[k * width + o];
      }
    }
  });
}

}  // namespace
}  // namespace cmrfast::cpu

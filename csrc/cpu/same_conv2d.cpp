// Convolution with the padding that keeps the image's size, and the gradient of its weight, after
// Winograd (Lavin and Gray, 2016): a tile of 6 x 6 pixels gives 4 x 4 outputs of a 3 x 3 kernel, or
// 2 x 2 of a 5 x 5 kernel, with 36 products per pair of channels instead of 144 or 100.
//
// Each product is a matrix product over channels. The tiles of a few rows of the image stay in a
// core's cache from one transform to the next. What a task sums and the order of tasks depend on
// shapes only, so the result does not depend on the number of threads.
#include <array>
#include <vector>

#include "tiles2d.h"
#include "wide_range.h"

namespace cmrfast::cpu {
namespace {

constexpr int kSide = 6, kProducts = kSide * kSide;

// Polynomials are evaluated at 0, +-A, +-B and infinity. With these points the rounding error is
// twice that of direct summation; with the usual 1 and 2 it is four times as large.
constexpr double kA = 0.75, kB = 1.5, kA2 = kA * kA, kB2 = kB * kB;

// In place on six vectors `step` apart.
template <class T>
__attribute__((always_inline)) inline void input_transform(Vector<T>* d, int step) {
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
__attribute__((always_inline)) inline void output_transform(Vector<T>* m, int step) {
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
__attribute__((always_inline)) inline void grad_transform(Vector<T>* g, int step) {
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

// kWeightTransform<TAPS>[p][i]: the coefficient of product p for tap i.
template <int TAPS>
constexpr auto kWeightTransform = [] {
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
    for (int j = 0; j < kSide; ++j) output_transform<OUT, T>(d + j, kSide);
#pragma GCC unroll 4
    for (int i = 0; i < OUT; ++i) {
      output_transform<OUT, T>(d + kSide * i, 1);
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
Tensor packed(const Tensor& weight, int64_t O, int64_t C, bool mirrored) {
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
          const T coefficient = kWeightTransform<TAPS>[p][i];
          for (int j = 0; j < TAPS; ++j)
            half[p][j] += coefficient * Tile<T>::load(taps[i * TAPS + j]);
        }
      }
      for (int p = 0; p < kSide; ++p) {
        for (int q = 0; q < kSide; ++q) {
          Vector<T> value{};
          for (int j = 0; j < TAPS; ++j) {
            value += static_cast<T>(kWeightTransform<TAPS>[q][j]) * half[p][j];
          }
          std::memcpy(column + (p * kSide + q) * padded<T>(O) * C + c * cols, &value,
                      sizeof(value));
        }
      }
    }
  });
  return to;
}

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

template <int TAPS, class T>
void forward(const Tensor& x, const Tensor& weights, const Tensor& bias, int64_t dilation,
             Tensor& out) {
  constexpr int OUT = kSide + 1 - TAPS;
  constexpr int64_t lanes = Tile<T>::lanes, cols = Tile<T>::cols, rows = Tile<T>::rows;
  const int64_t C = x.size(1), O = out.size(1), image = x.size(2) * x.size(3);
  const TileGrid grid(x, dilation, OUT);
  // Enough tiles to reuse the weights, few enough to stay in cache and to give every core a task.
  const int64_t fit = (int64_t{512} << 10) / (kProducts * padded<T>(C) * int64_t{sizeof(T)});
  const int64_t wanted = std::clamp<int64_t>(fit, 48, 192), lines = grid.lines();
  const int64_t shared = std::max<int64_t>(1, std::max((lines + 15) / 16, 24 / grid.per_row));
  const int64_t block = std::clamp<int64_t>(wanted / grid.per_row, 1, shared);
  const int64_t group = 2 * cols;  // output channels whose products stay in cache
  torch::stable::parallel_for(0, (lines + block - 1) / block, 1, [&](int64_t begin, int64_t end) {
    Strip<T> strip(grid, kSide, TAPS / 2), sums(grid, OUT, 0);
    Products<T> input(x, block * grid.per_row, C), output(x, block * grid.per_row, group);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * block, last = std::min(lines, first + block);
      const int64_t tiles = (last - first) * grid.per_row;
      for (int64_t n = first; n < last; ++n) {
        const TileLine line(grid, n);
        to_products<kSide>(grid, line, read<T>(x) + line.sample * C * image, C, strip,
                           (n - first) * grid.per_row, input,
                           [](auto* d, int step) { input_transform<T>(d, step); });
      }
      for (int64_t o = 0; o < O; o += group) {
        const int64_t columns = std::min(group, padded<T>(O) - o);
        for (int f = 0; f < kProducts; ++f) {
          for (int64_t col = 0; col < columns; col += cols) {
            const T* w = read<T>(weights) + (f * padded<T>(O) + o + col) * C;
            for (int64_t t = 0; t < tiles; t += rows) {
              multiply_tile<T>(std::min(rows, tiles - t), C,
                               View<T>{input.at(f, t), input.channels, 1}, w, cols,
                               output.at(f, t) + col, output.channels, cols, false);
            }
          }
        }
        for (int64_t n = first; n < last; ++n) {
          const TileLine line(grid, n);
          for (int64_t from = o; from < std::min(O, o + columns); from += lanes) {
            T shift[lanes]{};
            std::copy_n(read<T>(bias) + from, std::min(O - from, lanes), shift);
            from_products<OUT>(output, (n - first) * grid.per_row, from - o, grid.per_row,
                               Tile<T>::load(shift), sums);
            sums.write(write<T>(out) + line.sample * O * image, from, O, line);
          }
        }
      }
    }
  });
}

// The products of tiles that are summed directly become 0.
template <class T>
void clear(const Products<T>& products, const FarTiles& far, const TileGrid& grid, int64_t line,
           int64_t first) {
  for (int64_t tile = 0; tile < grid.per_row; ++tile) {
    if (!far.has(line, tile)) continue;
    for (int f = 0; f < kProducts; ++f)
      std::fill_n(products.at(f, first + tile), products.channels, T{0});
  }
}

template <int TAPS, class T>
void backward(const Tensor& x, const Tensor& grad, int64_t dilation, Tensor& weights) {
  constexpr int OUT = kSide + 1 - TAPS;
  constexpr int64_t lanes = Tile<T>::lanes, cols = Tile<T>::cols, rows = Tile<T>::rows;
  const int64_t C = x.size(1), O = grad.size(1), image = x.size(2) * x.size(3);
  const int64_t width = padded<T>(C), groups = (O + rows - 1) / rows;
  const TileGrid grid(x, dilation, OUT);
  FarTiles far(grid);
  far.add(FarPixels<T>(x, image), kSide, TAPS / 2);
  far.add(FarPixels<T>(grad, image), OUT, 0);
  const int64_t tile_bytes = kProducts * (width + padded<T>(O)) * int64_t{sizeof(T)};
  const int64_t fit = std::max<int64_t>((int64_t{8} << 20) / tile_bytes, 128);
  const int64_t lines = grid.lines(), block = std::max<int64_t>(1, fit / grid.per_row);
  const Tensor memory = fresh(x, {kProducts * O * width}, x.scalar_type());
  T* totals = write<T>(memory);
  Products<T> input(x, std::min(block, lines) * grid.per_row, C);
  Products<T> grads(x, std::min(block, lines) * grid.per_row, O);
  for (int64_t first = 0; first < lines; first += block) {
    const int64_t count = std::min(block, lines - first), tiles = count * grid.per_row;
    torch::stable::parallel_for(0, 2 * count, 1, [&](int64_t begin, int64_t end) {
      Strip<T> strip(grid, kSide, TAPS / 2), grad_strip(grid, OUT, 0);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task / 2, tile = n * grid.per_row;
        const TileLine line(grid, first + n);
        if (task % 2) {
          to_products<OUT>(grid, line, read<T>(grad) + line.sample * O * image, O, grad_strip, tile,
                           grads, [&](auto* g, int step) { grad_transform<OUT, T>(g, step); });
          clear(grads, far, grid, first + n, tile);
        } else {
          to_products<kSide>(grid, line, read<T>(x) + line.sample * C * image, C, strip, tile,
                             input, [](auto* d, int step) { input_transform<T>(d, step); });
          clear(input, far, grid, first + n, tile);
        }
      }
    });
    for_each_task(kProducts * groups, [&](int64_t task) {
      const int64_t f = task / groups, o = task % groups * rows;
      for (int64_t c = 0; c < width; c += cols) {
        multiply_tile<T>(std::min(rows, O - o), tiles,
                         View<T>{grads.at(f, 0) + o, 1, grads.channels}, input.at(f, 0) + c, width,
                         totals + (f * O + o) * width + c, width, cols, first > 0);
      }
    });
  }
  for_each_task(O, [&](int64_t o) {
    for (int64_t c = 0; c < C; c += lanes) {
      Vector<T> half[TAPS][kSide]{};
      for (int p = 0; p < kSide; ++p) {
        for (int q = 0; q < kSide; ++q) {
          const T* from = totals + ((p * kSide + q) * O + o) * width + c;
          for (int i = 0; i < TAPS; ++i) {
            half[i][q] += static_cast<T>(kWeightTransform<TAPS>[p][i]) * Tile<T>::load(from);
          }
        }
      }
      for (int i = 0; i < TAPS; ++i) {
        for (int j = 0; j < TAPS; ++j) {
          Vector<T> value{};
          for (int q = 0; q < kSide; ++q) {
            value += static_cast<T>(kWeightTransform<TAPS>[q][j]) * half[i][q];
          }
          for (int64_t l = 0; l < std::min(lanes, C - c); ++l) {
            write<T>(weights)[((o * C + c + l) * TAPS + i) * TAPS + j] = value[l];
          }
        }
      }
    }
  });
  const std::vector<FarTiles::Tile> tiles = far.list();
  if (!tiles.empty()) backward_directly<TAPS, T>(grid, tiles, x, grad, weights);
}

// Calls body(zero of the type, number of taps).
template <class Body>
void with_kind(const Tensor& x, int64_t taps, const Body& body) {
  with_real("same_conv2d: x", x.scalar_type(), [&](auto zero) {
    taps == 3 ? body(zero, std::integral_constant<int, 3>{})
              : body(zero, std::integral_constant<int, 5>{});
  });
}

// The dilation, at most the image's size: beyond, all taps but the central one are outside.
int64_t checked(const char* name, int64_t taps, int64_t dilation, const Tensor& x) {
  STD_TORCH_CHECK((taps == 3 || taps == 5) && dilation >= 1, name,
                  ": kernels are 3 x 3 or 5 x 5, dilations positive");
  return std::min(dilation, std::max({x.size(2), x.size(3), int64_t{1}}));
}

Tensor same_conv2d(const Tensor& x_any, const Tensor& weight_any, const Tensor& bias_any,
                   int64_t dilation, bool mirrored) {
  const Tensor x = torch::stable::contiguous(x_any);
  const Tensor weight = torch::stable::contiguous(weight_any);
  const Tensor bias = torch::stable::contiguous(bias_any);
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4 && weight.size(2) == weight.size(3) &&
                      weight.size(mirrored ? 0 : 1) == x.size(1) &&
                      bias.numel() == weight.size(mirrored ? 1 : 0) &&
                      weight.scalar_type() == x.scalar_type() &&
                      bias.scalar_type() == x.scalar_type(),
                  "same_conv2d: arguments do not fit one another");
  dilation = checked("same_conv2d", weight.size(2), dilation, x);
  const int64_t O = bias.numel(), C = x.size(1);
  Tensor out = fresh(x, std::vector<int64_t>{x.size(0), O, x.size(2), x.size(3)}, x.scalar_type());
  if (out.numel() == 0) return out;
  with_kind(x, weight.size(2), [&](auto zero, auto taps) {
    using T = decltype(zero);
    const TileGrid grid(x, dilation, kSide + 1 - taps);
    FarTiles far(grid);
    if (moderate<T>(weight)) {
      far.add(FarPixels<T>(x, grid.H * grid.W), kSide, taps / 2);
    } else {
      far.add_all();
    }
    forward<taps, T>(x, packed<taps, T>(weight, O, C, mirrored), bias, dilation, out);
    const std::vector<FarTiles::Tile> tiles = far.list();
    if (!tiles.empty()) forward_directly<taps, T>(grid, tiles, x, weight, bias, mirrored, out);
  });
  return out;
}

Tensor same_conv2d_backward(const Tensor& grad_any, const Tensor& x_any, int64_t taps,
                            int64_t dilation) {
  const Tensor grad = torch::stable::contiguous(grad_any);
  const Tensor x = torch::stable::contiguous(x_any);
  STD_TORCH_CHECK(x.dim() == 4 && grad.dim() == 4 && grad.scalar_type() == x.scalar_type() &&
                      grad.size(0) == x.size(0) && grad.size(2) == x.size(2) &&
                      grad.size(3) == x.size(3),
                  "same_conv2d_backward: arguments do not fit one another");
  dilation = checked("same_conv2d_backward", taps, dilation, x);
  Tensor weights =
      fresh(x, std::vector<int64_t>{grad.size(1), x.size(1), taps, taps}, x.scalar_type());
  with_kind(x, taps, [&](auto zero, auto of) {
    using T = decltype(zero);
    if (x.numel() == 0) {
      std::fill_n(write<T>(weights), weights.numel(), T{0});
    } else {
      backward<of, T>(x, grad, dilation, weights);
    }
  });
  return weights;
}

}  // namespace
}  // namespace cmrfast::cpu

STABLE_TORCH_LIBRARY_IMPL(cmrfast, CPU, m) {
  m.impl("same_conv2d", TORCH_BOX(&cmrfast::cpu::same_conv2d));
  m.impl("same_conv2d_backward", TORCH_BOX(&cmrfast::cpu::same_conv2d_backward));
}

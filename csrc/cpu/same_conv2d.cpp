// Convolution with the padding that keeps the image's size, and the gradient of its weight, after
// Winograd (winograd2d.h). Tiles that hold a far pixel are summed directly (far_tiles.h).
//
// Each product is a matrix product over channels. The tiles of a few rows of the image stay in a
// core's cache from one transform to the next. What a task sums and the order of tasks depend on
// shapes only, so the result does not depend on the number of threads.
#include <vector>

#include "far_tiles.h"
#include "matmul.h"
#include "tiles2d.h"
#include "winograd2d.h"

namespace cmrfast::cpu {
namespace {

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
                           [](auto* d, int step) { transform_input<T>(d, step); });
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
                           grads, [&](auto* g, int step) { transform_grad<OUT, T>(g, step); });
          clear(grads, far, grid, first + n, tile);
        } else {
          to_products<kSide>(grid, line, read<T>(x) + line.sample * C * image, C, strip, tile,
                             input, [](auto* d, int step) { transform_input<T>(d, step); });
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
            half[i][q] += static_cast<T>(kTapCoefficients<TAPS>[p][i]) * Tile<T>::load(from);
          }
        }
      }
      for (int i = 0; i < TAPS; ++i) {
        for (int j = 0; j < TAPS; ++j) {
          Vector<T> value{};
          for (int q = 0; q < kSide; ++q) {
            value += static_cast<T>(kTapCoefficients<TAPS>[q][j]) * half[i][q];
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
    forward<taps, T>(x, packed_weights<taps, T>(weight, O, C, mirrored), bias, dilation, out);
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

// 3 x 3 x 3 convolution between few channels, and the gradient of its weight.
//
// A task transforms a band of the input into lines that stay in cache (winograd.h) and convolves
// or correlates them with a block of sums in registers. What a task sums and the order of tasks
// depend on shapes only, so the result does not depend on the number of threads. Minimum traffic:
// input and output once.
#include <tuple>
#include <type_traits>
#include <utility>

#include "wide_range.h"
#include "winograd.h"

namespace cmrfast::cpu {
namespace {

// Calls body(first channel, std::integral_constant of how many) for groups of at most MOST
// channels.
template <int MOST, class Body>
void for_each_group(int64_t C, const Body& body) {
  const int64_t groups = (C + MOST - 1) / MOST;
  for (int64_t g = 0, first = 0; g < groups; ++g) {
    const int64_t count = C / groups + (g < C % groups);
    const auto call = [&]<int... N>(std::integer_sequence<int, N...>) {
      ((count == N + 1 ? body(first, std::integral_constant<int, N + 1>{}) : void()), ...);
    };
    call(std::make_integer_sequence<int, MOST>{});
    first += count;
  }
}

// Keeps a vector in a register; the compiler would load it again for every use.
template <class V>
V in_register(V value) {
#if defined(__x86_64__)
  __asm__("" : "+v"(value));
#endif
  return value;
}

// Output channels that a pass over the lines sums, and gradients that one correlates. AVX-512 has
// 32 registers, twice as many as AVX2.
constexpr int kOutputs = kVectorBytes == 64 ? 7 : 5, kGradients = kVectorBytes == 64 ? 7 : 4;

// Vectors of a line that are summed at once: N x width sums, width inputs and a weight are held in
// registers.
constexpr int width_for(int N) {
  if (kVectorBytes == 64) return N == 1 ? 8 : N <= 3 ? 6 : N <= 6 ? 4 : 3;
  return N == 1 ? 8 : N == 2 ? 4 : N == 3 ? 3 : 2;
}

template <int N, class T>
void convolve(const T* lines, int64_t stride, int64_t C, const T* weights, int64_t n, T* out) {
  constexpr int lanes = Tile<T>::lanes, width = width_for(N);
  for (int64_t q = 0; q < n; q += width * lanes) {
    Vector<T> sum[N][width]{};
    const T* w = weights;
    for (int64_t c = 0; c < C; ++c) {
      const T* from = lines + c * stride + q;
#pragma GCC unroll 3
      for (int tap = 0; tap < 3; ++tap, w += N) {
        Vector<T> x[width];
#pragma GCC unroll 8
        for (int v = 0; v < width; ++v) {
          x[v] = Tile<T>::load(from + tap + v * lanes);
          if (N > 1) x[v] = in_register(x[v]);
        }
#pragma GCC unroll 7
        for (int o = 0; o < N; ++o) {
          const T value = w[o];
#pragma GCC unroll 8
          for (int v = 0; v < width; ++v) sum[o][v] += value * x[v];
        }
      }
    }
#pragma GCC unroll 7
    for (int o = 0; o < N; ++o) {
#pragma GCC unroll 8
      for (int v = 0; v < width; ++v) {
        std::memcpy(out + o * stride + q + v * lanes, &sum[o][v], sizeof(sum[o][v]));
      }
    }
  }
}

// Weights (O, C, 27) in the order that the kernel reads: group, product, C, tap, channel in group.
template <class T>
std::vector<T> packed(const T* weights, int64_t O, int64_t C) {
  std::vector<T> to(static_cast<size_t>(O * C * 3 * kLines));
  T* at = to.data();
  for_each_group<kOutputs>(O, [&](int64_t first, auto group) {
    for (int f = 0; f < kLines; ++f) {
      for (int64_t tap = 0; tap < C * 3; ++tap) {
        for (int64_t o = first; o < first + group; ++o) {
          const T* w = weights + (o * C + tap / 3) * 27 + tap % 3;
          double sum = 0;
          for (int k = 0; k < 9; ++k)
            sum += kWeightTransform[f / 4][k / 3] * kWeightTransform[f % 4][k % 3] * w[3 * k];
          *at++ = static_cast<T>(sum);
        }
      }
    }
  });
  return to;
}

// Pairs of planes and rows, 2 x 2 rows each, that are computed directly because a far pixel
// (wide_range.h) is in one of the 4 x 4 rows that their transforms mix.
class FarRows {
 public:
  struct Rows {
    int64_t sample, z, y;
  };

  explicit FarRows(const Bands& b) : b_(b), planes_((b.D + 1) / 2), rows_((b.H + 1) / 2) {}

  // Adds those whose `side` x `side` rows, from `before` ahead, hold a far pixel.
  template <class T>
  void add(const FarPixels<T>& far, int side, int before) {
    for (int64_t n = 0; n < b_.B * planes_ * rows_; ++n) {
      const Rows at = rows(n);
      if (!far.in(at.sample)) continue;
      for (int64_t z = std::max<int64_t>(0, at.z - before);
           z < std::min(b_.D, at.z - before + side); ++z) {
        for (int64_t y = std::max<int64_t>(0, at.y - before);
             y < std::min(b_.H, at.y - before + side); ++y) {
          for (int64_t x = 0; x < b_.W; ++x) {
            if (far.at(at.sample, (z * b_.H + y) * b_.W + x)) mark(n);
          }
        }
      }
    }
  }
  void add_all() {
    for (int64_t n = 0; n < b_.B * planes_ * rows_; ++n) mark(n);
  }
  bool has(const Band& band, int64_t pair) const {
    return !marked_.empty() &&
           marked_[(band.sample * planes_ + band.z / 2) * rows_ + band.y / 2 + pair];
  }
  std::vector<Rows> list() const {
    std::vector<Rows> all;
    for (int64_t n = 0; n < static_cast<int64_t>(marked_.size()); ++n) {
      if (marked_[n]) all.push_back(rows(n));
    }
    return all;
  }

 private:
  Rows rows(int64_t n) const {
    return {n / (planes_ * rows_), n / rows_ % planes_ * 2, n % rows_ * 2};
  }
  void mark(int64_t n) {
    marked_.resize(static_cast<size_t>(b_.B * planes_ * rows_));
    marked_[n] = 1;
  }

  const Bands& b_;
  int64_t planes_, rows_;
  std::vector<uint8_t> marked_;  // empty if there are none
};

// Calls body(tap, offset of an output row, of the input row, first and last x) for every pair of an
// output row and an input row under one of its taps; taps outside are left out.
template <class Body>
void for_each_tap(const Bands& b, const FarRows::Rows& rows, const Body& body) {
  for (int64_t z = rows.z; z < std::min(b.D, rows.z + 2); ++z) {
    for (int64_t y = rows.y; y < std::min(b.H, rows.y + 2); ++y) {
      for (int tap = 0; tap < 27; ++tap) {
        const int64_t dz = z + tap / 9 - 1, dy = y + tap / 3 % 3 - 1, dx = tap % 3 - 1;
        if (dz < 0 || dz >= b.D || dy < 0 || dy >= b.H) continue;
        body(tap, (z * b.H + y) * b.W, (dz * b.H + dy) * b.W + dx, std::max<int64_t>(0, -dx),
             std::min(b.W, b.W - dx));
      }
    }
  }
}

template <class T>
void forward_directly(const Bands& b, const std::vector<FarRows::Rows>& rows, const Tensor& x,
                      const Tensor& weight, const Tensor& bias, T slope, const Tensor& out) {
  const int64_t O = weight.size(0);
  for_each_task(static_cast<int64_t>(rows.size()) * O, [&](int64_t task) {
    const FarRows::Rows& at = rows[task / O];
    const int64_t o = task % O;
    T* to = write<T>(out) + (at.sample * O + o) * b.size();
    const auto each_row = [&](const auto& finish) {
      for (int64_t z = at.z; z < std::min(b.D, at.z + 2); ++z) {
        for (int64_t y = at.y; y < std::min(b.H, at.y + 2); ++y) {
          T* row = to + (z * b.H + y) * b.W;
          std::transform(row, row + b.W, row, finish);
        }
      }
    };
    each_row([&](T) { return read<T>(bias)[o]; });
    for (int64_t c = 0; c < b.C; ++c) {
      const T* from = read<T>(x) + (at.sample * b.C + c) * b.size();
      const T* w = read<T>(weight) + (o * b.C + c) * 27;
      for_each_tap(b, at, [&](int tap, int64_t row, int64_t under, int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) to[row + k] += w[tap] * from[under + k];
      });
    }
    each_row([&](T value) { return value > 0 ? value : slope * value; });
  });
}

// Adds to the gradients of the weight (O, C, 27) and of the bias.
template <class T>
void backward_directly(const Bands& b, const std::vector<FarRows::Rows>& rows, const Tensor& x,
                       const Tensor& grad, double* weights, double* bias) {
  const int64_t O = grad.size(1);
  for_each_task(O, [&](int64_t o) {
    for (const FarRows::Rows& at : rows) {
      const T* g = read<T>(grad) + (at.sample * O + o) * b.size();
      for (int64_t c = 0; c < b.C; ++c) {
        const T* from = read<T>(x) + (at.sample * b.C + c) * b.size();
        double* to = weights + (o * b.C + c) * 27;
        for_each_tap(b, at, [&](int tap, int64_t row, int64_t under, int64_t begin, int64_t end) {
          for (int64_t k = begin; k < end; ++k)
            to[tap] += static_cast<double>(g[row + k]) * from[under + k];
        });
      }
      for_each_tap(b, at, [&](int tap, int64_t row, int64_t, int64_t begin, int64_t end) {
        for (int64_t k = begin; tap == 13 && k < end; ++k) bias[o] += g[row + k];
      });
    }
  });
}

template <class T>
void forward(const Tensor& x, const Tensor& weight, const Tensor& bias, T slope, Tensor& out) {
  const Bands b(x, x.size(1));
  const int64_t C = b.C, O = weight.size(0), line = b.line();
  const std::vector<T> weights = packed(read<T>(weight), O, C);
  torch::stable::parallel_for(0, b.count, 1, [&](int64_t begin, int64_t end) {
    Lines<T> lines(b, kLines * C), sums(b, kLines * kOutputs);
    const std::vector<T> zeros(static_cast<size_t>(b.W));
    for (int64_t task = begin; task < end; ++task) {
      const Band band(b, task);
      for (int64_t c = 0; c < C; ++c) {
        to_lines<4>(b, band, read<T>(x) + (band.sample * C + c) * b.size(), 1, zeros.data(),
                    lines.data() + c * line + 1, C * line, input_transform);
      }
      for_each_group<kOutputs>(O, [&](int64_t first, auto group) {
        const T* w = weights.data() + first * C * 3 * kLines;
        for (int f = 0; f < kLines; ++f, w += C * 3 * group) {
          convolve<group>(lines.data() + f * C * line, line, C, w, band.pairs * b.pitch() - 1,
                          sums.data() + f * group * line);
        }
        for (int64_t o = 0; o < group; ++o) {
          const T shift = read<T>(bias)[first + o];
          from_lines(b, band, sums.data() + o * line, group * line,
                     write<T>(out) + (band.sample * O + first + o) * b.size(),
                     [&](Vector<T> value) {
                       value += shift;
                       return value > 0 ? value : slope * value;
                     });
        }
      });
    }
  });
  FarRows far(b);
  moderate<T>(weight) ? far.add(FarPixels<T>(x, b.size()), 4, 1) : far.add_all();
  const std::vector<FarRows::Rows> rows = far.list();
  if (!rows.empty()) forward_directly(b, rows, x, weight, bias, slope, out);
}

// Adds to N x 3 vectors of sums the products of N gradients with the input at three shifts.
template <int N, class T>
void correlate(const T* x, const T* grad, int64_t stride, int64_t n, T* sums) {
  constexpr int lanes = Tile<T>::lanes, steps = N == 1 ? 4 : N == 2 ? 2 : 1;
  Vector<T> sum[steps][N][3]{};
  for (int64_t q = 0; q < n; q += steps * lanes) {
#pragma GCC unroll 4
    for (int s = 0; s < steps; ++s) {
      const T* from = x + q + s * lanes;
      const Vector<T> shifted[3] = {Tile<T>::load(from), Tile<T>::load(from + 1),
                                    Tile<T>::load(from + 2)};
#pragma GCC unroll 7
      for (int o = 0; o < N; ++o) {
        const Vector<T> g = Tile<T>::load(grad + o * stride + q + s * lanes);
#pragma GCC unroll 3
        for (int tap = 0; tap < 3; ++tap) sum[s][o][tap] += g * shifted[tap];
      }
    }
  }
#pragma GCC unroll 21
  for (int i = 0; i < N * 3; ++i) {
    Vector<T> total = Tile<T>::load(sums + i * lanes);
#pragma GCC unroll 4
    for (int s = 0; s < steps; ++s) total += sum[s][i / 3][i % 3];
    std::memcpy(sums + i * lanes, &total, sizeof(total));
  }
}

// Sums in double, by product, group, C, channel in group and tap; then the sums of grad by channel.
template <class T>
std::vector<double> gradients(const Tensor& x, const Tensor& grad, const Bands& b,
                              const FarRows& far) {
  constexpr int64_t lanes = Tile<T>::lanes, run = 8;  // bands summed in T before double
  const int64_t C = x.size(1), O = grad.size(1), size = kLines * O * C * 3 + O;
  const int64_t line = b.line(), per_task = std::max(run, (b.count + 63) / 64);
  const int64_t tasks = (b.count + per_task - 1) / per_task;
  std::vector<double> totals(static_cast<size_t>((tasks + 1) * size));
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    Lines<T> lines(b, kLines * C), grads(b, kLines * O);
    const std::vector<T> zeros(static_cast<size_t>(b.W));
    std::vector<T> sums(static_cast<size_t>(size * lanes));
    const auto add = [&](const Band& band) {
      const int64_t n = band.pairs * b.pitch();
      for (int64_t c = 0; c < C; ++c) {
        to_lines<4>(b, band, read<T>(x) + (band.sample * C + c) * b.size(), 1, zeros.data(),
                    lines.data() + c * line + 1, C * line, input_transform);
      }
      for (int64_t o = 0; o < O; ++o) {
        T* to = grads.data() + o * line;
        for (int f = 0; f < kLines; ++f) std::fill_n(to + f * O * line + n, 4 * lanes, T{0});
        to_lines<2>(b, band, read<T>(grad) + (band.sample * O + o) * b.size(), 0, zeros.data(), to,
                    O * line, grad_transform);
      }
      for (int64_t pair = 0; pair < band.pairs; ++pair) {
        if (!far.has(band, pair)) continue;
        const auto clear = [&](Lines<T>& of, int64_t channels, int64_t first) {
          for (int64_t l = 0; l < kLines * channels; ++l)
            std::fill_n(of.data() + l * line + first + pair * b.pitch(), b.W, T{0});
        };
        clear(lines, C, 1);
        clear(grads, O, 0);
      }
      T* to = sums.data();
      for (int f = 0; f < kLines; ++f) {
        for_each_group<kGradients>(O, [&](int64_t first, auto group) {
          for (int64_t c = 0; c < C; ++c, to += group * 3 * lanes) {
            correlate<group>(lines.data() + (f * C + c) * line,
                             grads.data() + (f * O + first) * line, line, n, to);
          }
        });
      }
      for (int64_t o = 0; o < O; ++o, to += lanes) {  // product 5 contains each gradient once
        const T* from = grads.data() + (5 * O + o) * line;
        for (int64_t q = 0; q < n; q += lanes) {
          const Vector<T> total = Tile<T>::load(to) + Tile<T>::load(from + q);
          std::memcpy(to, &total, sizeof(total));
        }
      }
    };
    for (int64_t task = begin; task < end; ++task) {
      double* total = totals.data() + (task + 1) * size;
      const int64_t last = std::min(b.count, (task + 1) * per_task);
      for (int64_t first = task * per_task; first < last; first += run) {
        std::fill(sums.begin(), sums.end(), T{0});
        for (int64_t i = first; i < std::min(last, first + run); ++i) add(Band(b, i));
        for (int64_t s = 0; s < size * lanes; ++s) total[s / lanes] += sums[s];
      }
    }
  });
  for (int64_t s = size; s < (tasks + 1) * size; ++s) totals[s % size] += totals[s];
  totals.resize(static_cast<size_t>(size));
  return totals;
}

template <class T>
void backward(const Tensor& x, const Tensor& grad, Tensor& weights, Tensor& bias) {
  const Bands b(x, x.size(1) + grad.size(1));
  FarRows far(b);
  far.add(FarPixels<T>(x, b.size()), 4, 1);
  far.add(FarPixels<T>(grad, b.size()), 2, 0);
  std::vector<double> totals = gradients<T>(x, grad, b, far);
  const int64_t C = x.size(1), O = grad.size(1);
  std::vector<double> sums(static_cast<size_t>(O * C * 27));
  double* from = totals.data();
  for (int f = 0; f < kLines; ++f) {
    for_each_group<kGradients>(O, [&](int64_t first, auto group) {
      for (int64_t c = 0; c < C; ++c) {
        for (int64_t i = 0; i < group * 3; ++i, ++from) {
          double* to = sums.data() + ((first + i / 3) * C + c) * 27 + i % 3;
          for (int k = 0; k < 9; ++k)
            to[3 * k] += kWeightTransform[f / 4][k / 3] * kWeightTransform[f % 4][k % 3] * *from;
        }
      }
    });
  }
  backward_directly<T>(b, far.list(), x, grad, sums.data(), from);
  const auto cast = [](double value) { return static_cast<T>(value); };
  std::transform(sums.begin(), sums.end(), write<T>(weights), cast);
  std::transform(from, from + O, write<T>(bias), cast);
}

Tensor thin_conv3d(const Tensor& x_any, const Tensor& weight_any, const Tensor& bias_any,
                   double slope) {
  const Tensor x = torch::stable::contiguous(x_any);
  const Tensor weight = torch::stable::contiguous(weight_any);
  const Tensor bias = torch::stable::contiguous(bias_any);
  STD_TORCH_CHECK(x.dim() == 5 && weight.dim() == 5 && weight.size(1) == x.size(1) &&
                      weight.numel() == weight.size(0) * x.size(1) * 27 && weight.size(2) == 3 &&
                      weight.size(3) == 3 && bias.numel() == weight.size(0) &&
                      weight.scalar_type() == x.scalar_type() &&
                      bias.scalar_type() == x.scalar_type(),
                  "thin_conv3d: arguments do not fit one another");
  Tensor out =
      fresh(x, std::vector<int64_t>{x.size(0), weight.size(0), x.size(2), x.size(3), x.size(4)},
            x.scalar_type());
  with_real("thin_conv3d: x", x.scalar_type(),
            [&](auto zero) { forward(x, weight, bias, static_cast<decltype(zero)>(slope), out); });
  return out;
}

std::tuple<Tensor, Tensor> thin_conv3d_backward(const Tensor& grad_any, const Tensor& x_any) {
  const Tensor grad = torch::stable::contiguous(grad_any);
  const Tensor x = torch::stable::contiguous(x_any);
  STD_TORCH_CHECK(x.dim() == 5 && grad.dim() == 5 && grad.scalar_type() == x.scalar_type() &&
                      grad.size(0) == x.size(0) && grad.size(2) == x.size(2) &&
                      grad.size(3) == x.size(3) && grad.size(4) == x.size(4),
                  "thin_conv3d_backward: arguments do not fit one another");
  Tensor weights =
      fresh(x, std::vector<int64_t>{grad.size(1), x.size(1), 3, 3, 3}, x.scalar_type());
  Tensor bias = fresh(x, std::vector<int64_t>{grad.size(1)}, x.scalar_type());
  with_real("thin_conv3d: x", x.scalar_type(),
            [&](auto zero) { backward<decltype(zero)>(x, grad, weights, bias); });
  return {weights, bias};
}

}  // namespace
}  // namespace cmrfast::cpu

STABLE_TORCH_LIBRARY_IMPL(cmrfast, CPU, m) {
  m.impl("thin_conv3d", TORCH_BOX(&cmrfast::cpu::thin_conv3d));
  m.impl("thin_conv3d_backward", TORCH_BOX(&cmrfast::cpu::thin_conv3d_backward));
}

// Convolutions of 3 x 3 x 3 voxels between few channels, forward and in the weights.
//
// A task walks some planes of a band of rows. Its input lies in a ring of three planes in cache, a
// zero behind every row: a tap is then a shift along one flat line, and no border needs care. What
// is summed behind a row's end is dropped. Sums of a task and the order of tasks depend on shapes
// alone, so bits do not depend on threads. Least bytes: the input once, the output once.
#include <cstring>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common.h"
#include "matmul.h"

namespace cmrfast::cpu {
namespace {

constexpr int64_t kPlanes = 16;            // of a task's walk
constexpr int64_t kRing = int64_t{1} << 18;  // bytes, about; half of a small second-level cache
constexpr int64_t kTasks = 64;             // at most, where each has sums of its own

// How a volume is cut into bands; `item` is (sample, planes, rows).
struct Bands {
  int64_t C, D, H, W, rows, walks, per_plane, count;

  template <class T>
  static Bands of(const Tensor& x, T) {
    Bands b{x.size(1), x.size(2), x.size(3), x.size(4), 0, 0, 0, 0};
    const int64_t row = std::max<int64_t>(1, 3 * b.C * b.pitch() * int64_t{sizeof(T)});
    const int64_t fit = std::max<int64_t>(4, kRing / row - 2);
    b.per_plane = (b.H + fit - 1) / fit;
    b.rows = b.per_plane ? (b.H + b.per_plane - 1) / b.per_plane : 0;
    b.walks = (b.D + kPlanes - 1) / kPlanes;
    b.count = x.numel() ? x.size(0) * b.walks * b.per_plane : 0;
    return b;
  }
  int64_t pitch() const { return W + 1; }
  // Of a band, with what the widest step of a kernel reads and writes behind it.
  int64_t line() const { return rows * pitch() + 128; }
};

struct Item {
  int64_t sample, z, z_end, y, y_end;
  Item(const Bands& b, int64_t i)
      : sample(i / (b.walks * b.per_plane)),
        z(i / b.per_plane % b.walks * kPlanes),
        z_end(std::min(b.D, z + kPlanes)),
        y(i % b.per_plane * b.rows),
        y_end(std::min(b.H, y + b.rows)) {}
};

// Rows [y, y + rows) of a plane onto a flat line, zeros behind each and where there is no row.
template <class T>
void lay(const Bands& b, const T* plane, int64_t y, int64_t rows, T* to) {
  for (int64_t r = y; r < y + rows; ++r, to += b.pitch()) {
    const bool inside = plane != nullptr && r >= 0 && r < b.H;
    if (inside) std::memcpy(to, plane + r * b.W, static_cast<size_t>(b.W) * sizeof(T));
    std::fill(to + (inside ? b.W : 0), to + b.pitch(), T{0});
  }
}

// Planes z - 1, z and z + 1 of a band and a row on either side of it, channel by channel.
template <class T>
struct Ring {
  const Bands& bands;
  int64_t stride;  // from channel to channel
  std::vector<T> values;

  explicit Ring(const Bands& b)
      : bands(b),
        stride(b.line() + 2 * b.pitch() + 2),
        values(static_cast<size_t>(3 * b.C * stride)) {}

  T* plane(int64_t z) { return values.data() + (z + 3) % 3 * bands.C * stride; }

  void load(const T* sample, int64_t z, int64_t y) {
    const int64_t size = bands.H * bands.W;
    for (int64_t c = 0; c < bands.C; ++c) {
      const T* from = z >= 0 && z < bands.D ? sample + (c * bands.D + z) * size : nullptr;
      lay(bands, from, y - 1, bands.rows + 2, plane(z) + c * stride + 1);
    }
  }

  // Calls body(z, planes) for each plane of an item, its neighbours at hand.
  template <class Body>
  void walk(const T* x, const Item& item, const Body& body) {
    const T* sample = x + item.sample * bands.C * bands.D * bands.H * bands.W;
    load(sample, item.z - 1, item.y);
    load(sample, item.z, item.y);
    for (int64_t z = item.z; z < item.z_end; ++z) {
      load(sample, z + 1, item.y);
      const T* planes[3] = {plane(z - 1), plane(z), plane(z + 1)};
      body(z, planes);
    }
  }
};

// Calls body(first channel, std::integral_constant of how many) for groups of at most MOST channels.
template <int MOST, class Body>
void for_each_group(int64_t C, const Body& body) {
  const int64_t groups = (C + MOST - 1) / MOST;
  for (int64_t g = 0, first = 0; g < groups; ++g) {
    const int64_t count = C / groups + (g < C % groups);
    const auto call = [&]<int... N>(std::integer_sequence<int, N...>) {
      ((count == N + 1 && (body(first, std::integral_constant<int, N + 1>{}), true)) || ...);
    };
    call(std::make_integer_sequence<int, MOST>{});
    first += count;
  }
}

// The vector in a register; the compiler would read it from memory again for every use.
template <class V>
V held(V value) {
#if defined(__x86_64__)
  __asm__("" : "+x"(value));
#endif
  return value;
}

// N output channels along a flat line: N x width sums, width inputs and a weight in 16 registers.
template <int N, class T>
void convolve(const Ring<T>& ring, const T* const* planes, const T* weights, const T* bias, T slope,
              int64_t n, T* out, int64_t out_stride) {
  using V = typename Tile<T>::Vector;
  constexpr int lanes = Tile<T>::lanes, width = N == 1 ? 8 : N == 2 ? 4 : N == 3 ? 3 : 2;
  const int64_t pitch = ring.bands.pitch();
  for (int64_t q = 0; q < n; q += width * lanes) {
    V sum[N][width];
#pragma GCC unroll 5
    for (int o = 0; o < N; ++o) {
#pragma GCC unroll 8
      for (int v = 0; v < width; ++v) sum[o][v] = bias[o] + V{};
    }
    const T* w = weights;
    for (int64_t c = 0; c < ring.bands.C; ++c) {
      for (int k = 0; k < 3; ++k) {
        const T* from = planes[k] + c * ring.stride + q;
        for (int j = 0; j < 3; ++j, from += pitch) {
#pragma GCC unroll 3
          for (int i = 0; i < 3; ++i, w += N) {
            V x[width];
#pragma GCC unroll 8
            for (int v = 0; v < width; ++v) {
              x[v] = Tile<T>::load(from + i + v * lanes);
              if (N > 1) x[v] = held(x[v]);
            }
#pragma GCC unroll 5
            for (int o = 0; o < N; ++o) {
              const T value = w[o];
#pragma GCC unroll 8
              for (int v = 0; v < width; ++v) sum[o][v] += value * x[v];
            }
          }
        }
      }
    }
#pragma GCC unroll 5
    for (int o = 0; o < N; ++o) {
#pragma GCC unroll 8
      for (int v = 0; v < width; ++v) {
        const V value = sum[o][v] > 0 ? sum[o][v] : slope * sum[o][v];
        std::memcpy(out + o * out_stride + q + v * lanes, &value, sizeof(value));
      }
    }
  }
}

// weights (O, C, 27) as the kernel reads them: by group, then C, 27, channels of the group.
template <class T>
std::vector<T> packed(const T* weights, int64_t O, int64_t C) {
  std::vector<T> to(static_cast<size_t>(O * C * 27));
  for_each_group<5>(O, [&](int64_t first, auto group) {
    T* at = to.data() + first * C * 27;
    for (int64_t tap = 0; tap < C * 27; ++tap) {
      for (int o = 0; o < group; ++o) *at++ = weights[(first + o) * C * 27 + tap];
    }
  });
  return to;
}

template <class T>
void forward(const Tensor& x, const Tensor& weight, const Tensor& bias, T slope, Tensor& out) {
  const Bands b = Bands::of(x, T{});
  const int64_t O = weight.size(0), line = b.line();
  const std::vector<T> weights = packed(read<T>(weight), O, b.C);
  torch::stable::parallel_for(0, b.count, 1, [&](int64_t begin, int64_t end) {
    Ring<T> ring(b);
    std::vector<T> sums(static_cast<size_t>(O * line));
    for (int64_t i = begin; i < end; ++i) {
      const Item item(b, i);
      const int64_t rows = item.y_end - item.y;
      ring.walk(read<T>(x), item, [&](int64_t z, const T* const* planes) {
        for_each_group<5>(O, [&](int64_t o, auto group) {
          convolve<group>(ring, planes, weights.data() + o * b.C * 27, read<T>(bias) + o,
                          slope, rows * b.pitch() - 1, sums.data() + o * line, line);
        });
        for (int64_t o = 0; o < O; ++o) {
          const T* from = sums.data() + o * line;
          T* to = write<T>(out) + (((item.sample * O + o) * b.D + z) * b.H + item.y) * b.W;
          for (int64_t r = 0; r < rows; ++r, from += b.pitch(), to += b.W) {
            std::memcpy(to, from, static_cast<size_t>(b.W) * sizeof(T));
          }
        }
      });
    }
  });
}

// Adds to N x 3 vectors of sums the products of N gradients with the input at three shifts.
template <int N, class T>
void correlate(const T* x, const T* grad, int64_t grad_stride, int64_t n, T* sums) {
  using V = typename Tile<T>::Vector;
  constexpr int lanes = Tile<T>::lanes, steps = N == 1 ? 4 : N == 2 ? 2 : 1;
  V sum[steps][N][3]{};
  for (int64_t q = 0; q < n; q += steps * lanes) {
#pragma GCC unroll 4
    for (int s = 0; s < steps; ++s) {
      const T* from = x + q + s * lanes;
      const V shifted[3] = {Tile<T>::load(from), Tile<T>::load(from + 1), Tile<T>::load(from + 2)};
#pragma GCC unroll 4
      for (int o = 0; o < N; ++o) {
        const V g = Tile<T>::load(grad + o * grad_stride + q + s * lanes);
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) sum[s][o][i] += g * shifted[i];
      }
    }
  }
#pragma GCC unroll 4
  for (int o = 0; o < N; ++o) {
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      T* to = sums + (o * 3 + i) * lanes;
      V total = Tile<T>::load(to);
#pragma GCC unroll 4
      for (int s = 0; s < steps; ++s) total += sum[s][o][i];
      std::memcpy(to, &total, sizeof(total));
    }
  }
}

// Per task, in double: weights (O, C, 27), then bias (O).
template <class T>
std::vector<double> gradients(const Tensor& x, const Tensor& grad) {
  const Bands b = Bands::of(x, T{});
  constexpr int64_t lanes = Tile<T>::lanes, segment = 64 * lanes;
  const int64_t O = grad.size(1), line = b.line(), taps = b.C * 27;
  const int64_t per_task = (b.count + kTasks - 1) / kTasks;
  const int64_t tasks = per_task ? (b.count + per_task - 1) / per_task : 0;
  std::vector<double> totals(static_cast<size_t>((tasks + 1) * O * (taps + 1)));
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    Ring<T> ring(b);
    std::vector<T> grads(static_cast<size_t>(O * line));
    std::vector<T> sums(static_cast<size_t>(O * (taps + 1) * lanes));
    T* const bias_sums = sums.data() + O * taps * lanes;
    const auto add_plane = [&](const Item& item, int64_t z, const T* const* planes) {
      const int64_t rows = item.y_end - item.y, n = rows * b.pitch();
      for (int64_t o = 0; o < O; ++o) {
        T* to = grads.data() + o * line;
        lay(b, read<T>(grad) + ((item.sample * O + o) * b.D + z) * b.H * b.W, item.y, rows, to);
        std::fill(to + n, to + line, T{0});
        for (int64_t q = 0; q < n; q += lanes) {
          for (int64_t l = 0; l < lanes; ++l) bias_sums[o * lanes + l] += to[q + l];
        }
      }
      for (int64_t q = 0; q < n; q += segment) {
        for_each_group<4>(O, [&](int64_t first, auto group) {
          T* to = sums.data() + first * taps * lanes;
          for (int64_t row = 0; row < b.C * 9; ++row, to += group * 3 * lanes) {
            const T* from = planes[row / 3 % 3] + row / 9 * ring.stride + row % 3 * b.pitch() + q;
            correlate<group>(from, grads.data() + first * line + q, line, std::min(segment, n - q),
                             to);
          }
        });
      }
    };
    for (int64_t task = begin; task < end; ++task) {
      double* total = totals.data() + (task + 1) * O * (taps + 1);
      for (int64_t i = task * per_task; i < std::min(b.count, (task + 1) * per_task); ++i) {
        std::fill(sums.begin(), sums.end(), T{0});
        const Item item(b, i);
        ring.walk(read<T>(x), item,
                  [&](int64_t z, const T* const* planes) { add_plane(item, z, planes); });
        for (int64_t s = 0; s < O * (taps + 1); ++s) {
          for (int64_t l = 0; l < lanes; ++l) total[s] += sums[s * lanes + l];
        }
      }
    }
  });
  for (int64_t task = 1; task <= tasks; ++task) {
    const double* from = totals.data() + task * O * (taps + 1);
    for (int64_t s = 0; s < O * (taps + 1); ++s) totals[s] += from[s];
  }
  return totals;
}

template <class T>
void backward(const Tensor& x, const Tensor& grad, Tensor& weights, Tensor& bias) {
  const std::vector<double> totals = gradients<T>(x, grad);
  const int64_t O = grad.size(1), taps = x.size(1) * 27;
  const double* from = totals.data();
  for_each_group<4>(O, [&](int64_t first, auto group) {
    for (int64_t row = 0; row < taps / 3; ++row) {
      for (int64_t o = first; o < first + group; ++o) {
        for (int64_t i = 0; i < 3; ++i) {
          write<T>(weights)[o * taps + row * 3 + i] = static_cast<T>(*from++);
        }
      }
    }
  });
  for (int64_t o = 0; o < O; ++o) write<T>(bias)[o] = static_cast<T>(*from++);
}

template <class Body>
void with_type(const Tensor& x, const Body& body) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
                  "thin_conv3d: x must be float32 or float64");
  x.scalar_type() == ScalarType::Double ? body(double{}) : body(float{});
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
  Tensor out = fresh(
      x, std::vector<int64_t>{x.size(0), weight.size(0), x.size(2), x.size(3), x.size(4)},
      x.scalar_type());
  with_type(x, [&](auto zero) {
    forward(x, weight, bias, static_cast<decltype(zero)>(slope), out);
  });
  return out;
}

std::tuple<Tensor, Tensor> thin_conv3d_backward(const Tensor& grad_any, const Tensor& x_any) {
  const Tensor grad = torch::stable::contiguous(grad_any);
  const Tensor x = torch::stable::contiguous(x_any);
  STD_TORCH_CHECK(x.dim() == 5 && grad.dim() == 5 && grad.scalar_type() == x.scalar_type() &&
                      grad.size(0) == x.size(0) && grad.size(2) == x.size(2) &&
                      grad.size(3) == x.size(3) && grad.size(4) == x.size(4),
                  "thin_conv3d_backward: arguments do not fit one another");
  Tensor weights = fresh(x, std::vector<int64_t>{grad.size(1), x.size(1), 3, 3, 3}, x.scalar_type());
  Tensor bias = fresh(x, std::vector<int64_t>{grad.size(1)}, x.scalar_type());
  with_type(x, [&](auto zero) { backward<decltype(zero)>(x, grad, weights, bias); });
  return {weights, bias};
}

}  // namespace
}  // namespace cmrfast::cpu

STABLE_TORCH_LIBRARY_IMPL(cmrfast, CPU, m) {
  m.impl("thin_conv3d", TORCH_BOX(&cmrfast::cpu::thin_conv3d));
  m.impl("thin_conv3d_backward", TORCH_BOX(&cmrfast::cpu::thin_conv3d_backward));
}

// Photometric augmentation, channel by channel: each step is one pass, and point-wise steps and the
// statistics of the next step join the pass before them.
//
// Small images are one task each; larger ones are cut into tasks of fixed size, and their sums are
// merged in order. Minimum traffic: images and output once; the passes of one channel mostly meet
// in the caches.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "axis_filters.h"
#include "common.h"
#include "philox.h"
#include "simd_math.h"
#include "statistics.h"

namespace cmrfast::cpu {
namespace {

constexpr int64_t kChunk = 8192;     // voxels of a task of a point-wise pass, a multiple of four
constexpr int64_t kRows = 64;        // rows of a task of a pass with neighbours
constexpr int64_t kSmall = 1 << 16;  // voxels of an image that is one task

// The parameters of one channel, with three space axes; NaN leaves a step out.
struct Parameters {
  double noise_sd, blur_sd[3], gain, bias, contrast, zoom[3], gamma_inverted, gamma;

  Parameters(const double* row, int64_t dims) {
    noise_sd = *row++;
    row = per_axis(row, dims, blur_sd);
    gain = *row++;
    bias = *row++;
    contrast = *row++;
    row = per_axis(row, dims, zoom);
    gamma_inverted = row[0];
    gamma = row[1];
  }

  static const double* per_axis(const double* row, int64_t dims, double* axes) {
    axes[0] = std::numeric_limits<double>::quiet_NaN();
    std::copy_n(row, dims, axes + 3 - dims);
    return row + dims;
  }
  static bool has(double value) { return !std::isnan(value); }
  static bool has(const double* axes) { return has(axes[0]) || has(axes[1]) || has(axes[2]); }
};

// One channel on its way through the steps. Passes with neighbours go from one buffer to another;
// with an odd number of them ahead, a pass writes to `scratch`, so that the last one ends in `out`.
template <class T, class Run>
class Channel {
 public:
  Channel(const T* image, T* out, T* scratch, const int64_t* n, const Run& run)
      : at_(image), out_(out), scratch_(scratch), run_(run), n_{n[0], n[1], n[2]} {}

  void apply(const Parameters& p, uint64_t seed, uint32_t channel, uint64_t sample) {
    using P = Parameters;
    const bool noise = P::has(p.noise_sd), blurs = P::has(p.blur_sd), coarsens = P::has(p.zoom);
    ahead_ = blurs + coarsens;
    const Need for_gamma = P::has(p.gamma) ? Need::kSpread : Need::kNothing;
    const Need for_inverted = P::has(p.gamma_inverted) ? Need::kSpread : for_gamma;
    const Need after_contrast = coarsens ? Need::kNothing : for_inverted;
    const Need first = P::has(p.contrast) ? Need::kRange : after_contrast;
    const Linear linear(p);
    if (noise) {
      add_noise(p.noise_sd, blurs ? Linear() : linear, {seed, channel, sample},
                blurs ? Need::kNothing : first);
    }
    if (blurs) blur(p.blur_sd, linear, first);
    if (!noise && !blurs) {
      if (linear.used) {
        map([&](T x) { return linear(x); }, first);
      } else if (first != Need::kNothing) {
        measure(first);
      }
    }
    if (P::has(p.contrast)) contrast(p.contrast, after_contrast);
    if (coarsens) lower_resolution(p.zoom, for_inverted);
    if (P::has(p.gamma_inverted)) power(p.gamma_inverted, true, for_gamma);
    if (P::has(p.gamma)) power(p.gamma, false, Need::kNothing);
    if (at_ != out_) map([](T x) { return x; }, Need::kNothing);
  }

 private:
  // Gain and bias, for the end of a pass.
  struct Linear {
    T gain = 1, bias = 0;
    bool used = false;
    Linear() = default;
    explicit Linear(const Parameters& p)
        : gain(static_cast<T>(Parameters::has(p.gain) ? p.gain : 1)),
          bias(static_cast<T>(Parameters::has(p.bias) ? p.bias : 0)),
          used(Parameters::has(p.gain) || Parameters::has(p.bias)) {}
    T operator()(T x) const { return x * gain + bias; }
  };
  struct Stream {
    uint64_t seed;
    uint32_t channel;
    uint64_t sample;
  };
  struct Range {
    int64_t begin, end;
  };

  int64_t voxels() const { return n_[0] * n_[1] * n_[2]; }
  int64_t chunks() const { return (voxels() + kChunk - 1) / kChunk; }
  Range chunk(int64_t task) const {
    return {task * kChunk, std::min(voxels(), (task + 1) * kChunk)};
  }

  // Runs body(task, to), which returns the range of voxels that it wrote, and measures them.
  template <class Body>
  void pass(int64_t tasks, Need need, const Body& body) {
    T* to = ahead_ % 2 ? scratch_ : out_;
    std::vector<Statistics<T>> parts(need == Need::kNothing ? 0 : static_cast<size_t>(tasks));
    run_(tasks, [&](int64_t task) {
      const Range range = body(task, to);
      if (need == Need::kNothing) return;
      parts[task] = Statistics<T>(to + range.begin, range.end - range.begin, need);
    });
    merge(parts);
    at_ = to;
  }

  void merge(const std::vector<Statistics<T>>& parts) {
    statistics_ = {};
    for (const auto& part : parts) statistics_.merge(part);
  }

  void measure(Need need) {
    std::vector<Statistics<T>> parts(static_cast<size_t>(chunks()));
    run_(chunks(), [&](int64_t task) {
      const Range range = chunk(task);
      parts[task] = Statistics<T>(at_ + range.begin, range.end - range.begin, need);
    });
    merge(parts);
  }

  template <class Function>
  void map(const Function& function, Need need) {
    const T* from = at_;
    pass(chunks(), need, [&](int64_t task, T* to) {
      const Range range = chunk(task);
#pragma omp simd
      for (int64_t k = range.begin; k < range.end; ++k) to[k] = function(from[k]);
      return range;
    });
  }

  void add_noise(double given_sd, const Linear& linear, const Stream& stream, Need need) {
    const T* from = at_;
    const T sd = static_cast<T>(given_sd);
    const Philox philox(stream.seed, stream.channel, stream.sample);
    pass(chunks(), need, [&](int64_t task, T* to) {
      const Range range = chunk(task);
      NormalBlock<T> block;
      for (int64_t k = range.begin; k < range.end; k += block.size) {
        block.draw(philox, k / 4);
        const int64_t count = std::min(block.size, range.end - k);
        for (int64_t x = 0; x < count; ++x) to[k + x] = linear(from[k + x] + sd * block.value[x]);
      }
      return range;
    });
  }

  // Runs body(i, j, end, to) for blocks of rows [j, end) of plane i.
  template <class Body>
  void rows_pass(Need need, const Body& body) {
    --ahead_;
    const int64_t groups = (n_[1] + kRows - 1) / kRows;
    pass(n_[0] * groups, need, [&](int64_t task, T* to) {
      const int64_t i = task / groups, j = task % groups * kRows, end = std::min(j + kRows, n_[1]);
      body(i, j, end, to);
      return Range{(i * n_[1] + j) * n_[2], (i * n_[1] + end) * n_[2]};
    });
  }

  void blur(const double* sd, const Linear& linear, Need need) {
    const Gaussian<T> ki(sd[0], n_[0]), kj(sd[1], n_[1]), kk(sd[2], n_[2]);
    const T* from = at_;
    const int64_t J = n_[1], K = n_[2];
    rows_pass(need, [&](int64_t i, int64_t j0, int64_t j1, T* to) {
      const auto [first, last] = kj.support(j0, j1);
      std::vector<T> slab(static_cast<size_t>((last - first) * K));  // blurred along axis 0
      std::vector<T> padded(static_cast<size_t>(K + 2 * kk.radius)), row(static_cast<size_t>(K));
      for (int64_t t = -ki.radius; t <= ki.radius; ++t) {
        add_scaled(slab.data(), from + (ki.reflected(i + t) * J + first) * K,
                   ki.weight[t + ki.radius], (last - first) * K);
      }
      for (int64_t j = j0; j < j1; ++j) {
        T* middle = padded.data() + kk.radius;
        std::fill_n(middle, K, T{0});
        for (int64_t t = -kj.radius; t <= kj.radius; ++t) {
          add_scaled(middle, slab.data() + (kj.reflected(j + t) - first) * K,
                     kj.weight[t + kj.radius], K);
        }
        for (int64_t x = 1; x <= kk.radius; ++x) {
          middle[-x] = middle[kk.reflected(-x)];
          middle[K - 1 + x] = middle[kk.reflected(K - 1 + x)];
        }
        std::fill_n(row.data(), K, T{0});
        for (int64_t t = 0; t <= 2 * kk.radius; ++t) {
          add_scaled(row.data(), padded.data() + t, kk.weight[t], K);
        }
        T* target = to + (i * J + j) * K;
        for (int64_t x = 0; x < K; ++x) target[x] = linear(row[x]);
      }
    });
  }

  static void add_scaled(T* __restrict sum, const T* __restrict from, T weight, int64_t count) {
    for (int64_t x = 0; x < count; ++x) sum[x] += weight * from[x];
  }

  void contrast(double given, Need need) {
    const T mean = static_cast<T>(statistics_.mean), factor = static_cast<T>(given);
    const T low = statistics_.low, high = statistics_.high;
    map(
        [=](T x) {
          const T value = (x - mean) * factor + mean;
          const T above = value < low ? low : value;  // NaN stays NaN
          return above > high ? high : above;
        },
        need);
  }

  void lower_resolution(const double* zoom, Need need) {
    const CoarseGrid<T> ci(zoom[0], n_[0]), cj(zoom[1], n_[1]), ck(zoom[2], n_[2]);
    const T* from = at_;
    const int64_t J = n_[1], K = n_[2];
    rows_pass(need, [&](int64_t i, int64_t j0, int64_t j1, T* to) {
      std::vector<T> blended(static_cast<size_t>(K));
      T* row = blended.data();
      const T* front = from + ci.left[i] * J * K;
      const T* back = from + ci.right[i] * J * K;
      const T fi = ci.fraction[i];
      for (int64_t j = j0; j < j1; ++j) {
        const int64_t top = cj.left[j] * K, low = cj.right[j] * K;
        const T fj = cj.fraction[j];
#pragma omp simd
        for (int64_t x = 0; x < K; ++x) {
          const T above = between(front[top + x], back[top + x], fi);
          const T below = between(front[low + x], back[low + x], fi);
          row[x] = between(above, below, fj);
        }
        T* target = to + (i * J + j) * K;
        const int32_t *left = ck.left.data(), *right = ck.right.data();
        const T* fraction = ck.fraction.data();
#pragma omp simd
        for (int64_t x = 0; x < K; ++x) {
          target[x] = between(row[left[x]], row[right[x]], fraction[x]);
        }
      }
    });
  }

  void power(double given, bool inverted, Need need) {
    const Statistics<T> before = statistics_;
    const T exponent = static_cast<T>(given), sign = inverted ? -1 : 1;
    const T zero = inverted ? before.high : before.low, span = before.high - before.low;
    const T scale = span > 0 ? sign : T{0}, divisor = span > 0 ? span : T{1};
    map(
        [=](T x) {
          T unit = (x - zero) * scale / divisor;
          unit = unit <= 0 ? T{0} : unit;  // also -0, which has no logarithm here; NaN stays
          unit = unit > 1 ? T{1} : unit;
          return simd::exp_nonpositive(exponent * simd::log_positive(unit));
        },
        Need::kSpread);
    const double sd = statistics_.sd();
    const T power_mean = static_cast<T>(statistics_.mean), mean = static_cast<T>(before.mean);
    const T factor = sign * static_cast<T>(sd > 0 && span > 0 ? before.sd() / sd : 0);
    map([=](T x) { return (x - power_mean) * factor + mean; }, need);
  }

  const T* at_;
  T *out_, *scratch_;
  const Run& run_;
  const int64_t n_[3];
  int ahead_ = 0;  // passes with neighbours
  Statistics<T> statistics_;
};

template <class T>
void augment(const Tensor& images, uint64_t seed, const Tensor& sample, const Tensor& parameters,
             Tensor& out) {
  const int64_t dims = images.dim() - 2, B = images.size(0), C = images.size(1);
  int64_t n[3] = {1, images.size(dims), images.size(dims + 1)};
  if (dims == 3) n[0] = images.size(2);
  const int64_t voxels = n[0] * n[1] * n[2], columns = 6 + 2 * dims;
  const auto channel = [&](int64_t task, T* scratch, const auto& run) {
    const Parameters p(read<double>(parameters) + task * columns, dims);
    Channel<T, std::decay_t<decltype(run)>>(read<T>(images) + task * voxels,
                                            write<T>(out) + task * voxels, scratch, n, run)
        .apply(p, seed, static_cast<uint32_t>(task % C),
               static_cast<uint64_t>(read<int64_t>(sample)[task / C]));
  };
  if (voxels <= kSmall) {
    for_each_task(B * C, [&](int64_t task) {
      const std::unique_ptr<T[]> scratch(new T[static_cast<size_t>(voxels)]);
      channel(task, scratch.get(), [](int64_t count, const auto& body) {
        for (int64_t i = 0; i < count; ++i) body(i);
      });
    });
    return;
  }
  const std::unique_ptr<T[]> scratch(new T[static_cast<size_t>(voxels)]);
  for (int64_t task = 0; task < B * C; ++task) {
    channel(task, scratch.get(),
            [](int64_t count, const auto& body) { for_each_task(count, body); });
  }
}

Tensor augment_intensity(const Tensor& images_any, int64_t seed, const Tensor& sample_any,
                         const Tensor& parameters_any, int64_t /* steps: NaN says the same */) {
  const Tensor images = torch::stable::contiguous(images_any);
  const Tensor sample = torch::stable::contiguous(sample_any);
  const Tensor parameters = torch::stable::contiguous(parameters_any);
  const int64_t dims = images.dim() - 2;
  STD_TORCH_CHECK(
      (dims == 2 || dims == 3) && sample.dim() == 1 && sample.size(0) == images.size(0) &&
          sample.scalar_type() == ScalarType::Long && parameters.dim() == 3 &&
          parameters.size(0) == images.size(0) && parameters.size(1) == images.size(1) &&
          parameters.size(2) == 6 + 2 * dims && parameters.scalar_type() == ScalarType::Double,
      "augment_intensity: images, sample and parameters do not fit one another");
  Tensor out = fresh(images, images.sizes(), images.scalar_type());
  with_real("augment_intensity: images", images.scalar_type(), [&](auto zero) {
    augment<decltype(zero)>(images, static_cast<uint64_t>(seed), sample, parameters, out);
  });
  return out;
}

}  // namespace
}  // namespace cmrfast::cpu

STABLE_TORCH_LIBRARY_IMPL(cmrfast, CPU, m) {
  m.impl("augment_intensity", TORCH_BOX(&cmrfast::cpu::augment_intensity));
}

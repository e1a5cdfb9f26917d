// Four sums a class in one pass over the logits, and their gradient in one more.
//
// A task takes a stretch of pixels of one image through tiles that stay in the first cache: the
// logits of all classes become probabilities there, and nothing else is ever stored. Least bytes:
// logits and target once, forward; both once and the gradient, backward. Sums are taken in SIMD
// lanes within a tile, in double over tiles, and stretch after stretch, whatever the threads do.
#include <numeric>
#include <vector>

#include "common.h"
#include "simd_math.h"

namespace cmrfast::cpu {
namespace {

enum Activation : int64_t { kSoftmax = 0, kSigmoid = 1, kNone = 2 };

constexpr int64_t kStretch = 16384;     // pixels of a task
constexpr int64_t kTile = 512;          // pixels of a tile, fewer where there are many classes
constexpr int64_t kTileValues = 16384;  // probabilities that a tile may hold
constexpr int32_t kIgnored = -1;        // the label of a pixel that enters no sum

struct Shape {
  int64_t B, K, N;
  int64_t tile() const { return std::min(kTile, kTileValues / K); }
  int64_t stretches() const { return (N + kStretch - 1) / kStretch; }
};

// The target of a tile: labels once for all classes, or the mask of one class at a time.
template <class T>
struct LabelTile {
  int32_t label[kTile], k;
  T t(int64_t i) const { return label[i] == k ? T{1} : T{0}; }
  bool counts(int64_t i) const { return label[i] != kIgnored; }
};

template <class T>
struct MaskTile {
  T mask[kTile], valid[kTile];
  T t(int64_t i) const { return mask[i]; }
  bool counts(int64_t i) const { return valid[i] != 0; }
};

template <class From>
void load_labels(const void* from, int64_t begin, int64_t n, int64_t K, int64_t ignore,
                 int32_t* label) {
  const From* source = static_cast<const From*>(from) + begin;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t value = static_cast<int64_t>(source[i]);
    const bool counts = value >= 0 && value < K && value != ignore;
    label[i] = counts ? static_cast<int32_t>(value) : kIgnored;
  }
}

template <class From, class T>
void load_mask(const void* from, int64_t begin, int64_t n, int64_t ignore, T* t, T* valid) {
  const From* source = static_cast<const From*>(from) + begin;
  for (int64_t i = 0; i < n; ++i) {
    const bool counts = source[i] != static_cast<From>(ignore) ||
                        static_cast<int64_t>(static_cast<From>(ignore)) != ignore;
    t[i] = counts ? static_cast<T>(source[i]) : T{0};
    valid[i] = counts ? T{1} : T{0};
  }
}

// Target dtypes differ only in how a tile is loaded, so the loops below know nothing of them.
template <class T>
struct TargetSource {
  using LoadLabels = void (*)(const void*, int64_t, int64_t, int64_t, int64_t, int32_t*);
  using LoadMask = void (*)(const void*, int64_t, int64_t, int64_t, T*, T*);

  const void* data;
  int64_t ignore;
  LoadLabels load_labels;
  LoadMask load_mask;

  template <class From>
  static TargetSource of(const Tensor& target, int64_t ignore) {
    return {target.const_data_ptr(), ignore, &cpu::load_labels<From>, &cpu::load_mask<From, T>};
  }

  static TargetSource of(const Tensor& target, int64_t ignore) {
    switch (target.scalar_type()) {
      case ScalarType::Bool:
      case ScalarType::Byte:
        return of<uint8_t>(target, ignore);
      case ScalarType::Short:
        return of<int16_t>(target, ignore);
      case ScalarType::Int:
        return of<int32_t>(target, ignore);
      case ScalarType::Long:
        return of<int64_t>(target, ignore);
      case ScalarType::Float:
        return of<float>(target, ignore);
      case ScalarType::Double:
        return of<double>(target, ignore);
      default:
        STD_TORCH_CHECK(false, "dice_ce_sums: no kernel for this dtype of target");
    }
  }

  // Once per tile, and then for each class.
  void load(const Shape& s, int64_t b, int64_t begin, int64_t n, LabelTile<T>& tile) const {
    load_labels(data, b * s.N + begin, n, s.K, ignore, tile.label);
  }
  void load(const Shape&, int64_t, int64_t, int64_t, MaskTile<T>&) const {}

  void load_class(const Shape&, int64_t, int64_t k, int64_t, int64_t, LabelTile<T>& tile) const {
    tile.k = static_cast<int32_t>(k);
  }
  void load_class(const Shape& s, int64_t b, int64_t k, int64_t begin, int64_t n,
                  MaskTile<T>& tile) const {
    load_mask(data, (b * s.K + k) * s.N + begin, n, ignore, tile.mask, tile.valid);
  }
};

// Softmax over the classes of a tile; lse is log(sum(exp(x))) of each pixel.
template <class T>
void softmax_tile(const T* x, int64_t K, int64_t N, int64_t n, T* p, T* lse) {
  T top[kTile], sum[kTile];
  for (int64_t i = 0; i < n; ++i) top[i] = x[i];
  for (int64_t k = 1; k < K; ++k) {
    const T* row = x + k * N;
    for (int64_t i = 0; i < n; ++i) top[i] = row[i] > top[i] ? row[i] : top[i];
  }
  for (int64_t i = 0; i < n; ++i) sum[i] = 0;
  for (int64_t k = 0; k < K; ++k) {
    const T* row = x + k * N;
    T* out = p + k * n;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      out[i] = simd::exp_nonpositive(row[i] - top[i]);
      sum[i] += out[i];
    }
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    lse[i] = top[i] + simd::log_positive(sum[i]);
    sum[i] = 1 / sum[i];
  }
  for (int64_t k = 0; k < K; ++k) {
    T* out = p + k * n;
    for (int64_t i = 0; i < n; ++i) out[i] *= sum[i];
  }
}

template <class T>
struct Four {
  T pt = 0, p = 0, t = 0, ce = 0;
};

// Adds p(i) t, p, t and loss(i) over the valid pixels of a tile.
template <class T, class Target, class Probability, class Loss>
Four<T> sum_tile(int64_t n, const Target& tile, Probability probability, Loss loss) {
  T pt = 0, ps = 0, ts = 0, ce = 0;
#pragma omp simd reduction(+ : pt, ps, ts, ce)
  for (int64_t i = 0; i < n; ++i) {
    const bool valid = tile.counts(i);
    const T t = tile.t(i);
    const T any = probability(i);
    const T p = valid ? any : T{0};
    const T entropy = loss(i, any, t);
    pt += p * t;
    ps += p;
    ts += t;
    ce += valid ? entropy : T{0};
  }
  return {pt, ps, ts, ce};
}

template <class T>
struct Sigmoid {
  T x, e, p;
  explicit Sigmoid(T logit) : x(logit) {
    e = simd::exp_nonpositive(x < 0 ? x : -x);
    p = (x < 0 ? e : T{1}) / (1 + e);
  }
  T softplus() const { return (x < 0 ? T{0} : x) + simd::log1p_unit(e); }  // log(1 + e^x)
};

template <class T, Activation activation, class Target>
void sums_of_stretch(const T* logits, const TargetSource<T>& target, const Shape& s, int64_t b,
                     int64_t begin, int64_t end, T eps, bool entropy, double* sums) {
  Target tile;
  T p[kTileValues], lse[kTile];
  for (int64_t at = begin; at < end; at += s.tile()) {
    const int64_t n = std::min(s.tile(), end - at);
    const T* x = logits + b * s.K * s.N + at;
    target.load(s, b, at, n, tile);
    if constexpr (activation == kSoftmax) softmax_tile(x, s.K, s.N, n, p, lse);
    for (int64_t k = 0; k < s.K; ++k) {
      const T* row = x + k * s.N;
      target.load_class(s, b, k, at, n, tile);
      Four<T> four;
      if constexpr (activation == kSoftmax) {
        four = sum_tile<T>(
            n, tile, [&](int64_t i) { return p[k * n + i]; },
            [&](int64_t i, T, T t) { return t != 0 ? t * (lse[i] - row[i]) : T{0}; });
      } else if constexpr (activation == kSigmoid) {
        const auto probability = [&](int64_t i) { return Sigmoid<T>(row[i]).p; };
        // The logarithm would cost as much as all the rest, so only where it is asked for.
        const auto loss = [&](int64_t i, T, T t) {
          return Sigmoid<T>(row[i]).softplus() - row[i] * t;
        };
        four = entropy ? sum_tile<T>(n, tile, probability, loss)
                       : sum_tile<T>(n, tile, probability, [](int64_t, T, T) { return T{0}; });
      } else {
        const T scale = 1 / (1 + static_cast<T>(s.K) * eps);
        four = sum_tile<T>(
            n, tile, [&](int64_t i) { return row[i]; },
            [&](int64_t, T value, T t) {
              return t != 0 ? -t * simd::log_positive((value + eps) * scale) : T{0};
            });
      }
      sums[4 * k] += four.pt;
      sums[4 * k + 1] += four.p;
      sums[4 * k + 2] += four.t;
      sums[4 * k + 3] += four.ce;
    }
  }
}

template <class T, Activation activation, class Target>
void gradient_of_stretch(const T* logits, const TargetSource<T>& target, const Shape& s, int64_t b,
                         int64_t begin, int64_t end, T eps, const T* grad, T* out) {
  Target tile;
  T p[kTileValues], lse[kTile], mean[kTile], weight[kTile];
  for (int64_t at = begin; at < end; at += s.tile()) {
    const int64_t n = std::min(s.tile(), end - at);
    const int64_t offset = b * s.K * s.N + at;
    const T* x = logits + offset;
    target.load(s, b, at, n, tile);
    if constexpr (activation == kSoftmax) {
      softmax_tile(x, s.K, s.N, n, p, lse);
      for (int64_t i = 0; i < n; ++i) mean[i] = weight[i] = 0;
      for (int64_t k = 0; k < s.K; ++k) {
        const T* g = grad + 4 * (b * s.K + k);
        const T g0 = g[0], g1 = g[1], g3 = g[3];
        target.load_class(s, b, k, at, n, tile);
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
          const T inner = g0 * tile.t(i) + g1;
          mean[i] += p[k * n + i] * (tile.counts(i) ? inner : T{0});
          weight[i] += g3 * tile.t(i);
        }
      }
    }
    for (int64_t k = 0; k < s.K; ++k) {
      const T* g = grad + 4 * (b * s.K + k);
      const T g0 = g[0], g1 = g[1], g3 = g[3];
      const T* row = x + k * s.N;
      T* to = out + offset + k * s.N;
      target.load_class(s, b, k, at, n, tile);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const T t = tile.t(i);
        const bool counts = tile.counts(i);
        const T inner = counts ? g0 * t + g1 : T{0};
        if constexpr (activation == kSoftmax) {
          to[i] = p[k * n + i] * (inner - mean[i] + weight[i]) - g3 * t;
        } else if constexpr (activation == kSigmoid) {
          const Sigmoid<T> value(row[i]);
          to[i] = inner * value.p * (1 - value.p) + (counts ? g3 * (value.p - t) : T{0});
        } else {
          to[i] = inner - (t != 0 ? g3 * t / (row[i] + eps) : T{0});
        }
      }
    }
  }
}

template <class Body>
void dispatch(ScalarType dtype, int64_t activation, bool labels, const Body& body) {
  const auto with_target = [&]<class T, class Target>() {
    if (activation == kSoftmax) body.template operator()<T, kSoftmax, Target>();
    if (activation == kSigmoid) body.template operator()<T, kSigmoid, Target>();
    if (activation == kNone) body.template operator()<T, kNone, Target>();
  };
  const auto with_type = [&](auto zero) {
    using T = decltype(zero);
    labels ? with_target.template operator()<T, LabelTile<T>>()
           : with_target.template operator()<T, MaskTile<T>>();
  };
  dtype == ScalarType::Double ? with_type(double{}) : with_type(float{});
}

Shape checked_shape(const Tensor& logits, const Tensor& target) {
  const Shape s{logits.size(0), logits.size(1), logits.size(2)};
  const ScalarType dtype = logits.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "dice_ce_sums: logits must be float32 or float64");
  STD_TORCH_CHECK(s.K <= kTileValues, "dice_ce_sums: too many classes");
  STD_TORCH_CHECK(target.numel() == (target.dim() == 2 ? s.B * s.N : s.B * s.K * s.N),
                  "dice_ce_sums: logits and target must have matching shapes");
  return s;
}

Tensor dice_ce_sums(const Tensor& logits_any, const Tensor& target_any, int64_t activation,
                    int64_t ignore_index, double eps, bool entropy) {
  const Shape s = checked_shape(logits_any, target_any);
  const Tensor logits = torch::stable::contiguous(logits_any);
  const Tensor target = torch::stable::contiguous(target_any);
  Tensor out = fresh(logits, {s.B, s.K, 4}, logits.scalar_type());
  std::vector<double> partial(static_cast<size_t>(s.B * s.stretches() * s.K * 4));
  const bool labels = target.dim() == 2;
  dispatch(logits.scalar_type(), activation, labels, [&]<class T, Activation kind, class Target>() {
    const auto source = TargetSource<T>::of(target, ignore_index);
    for_each_task(s.B * s.stretches(), [&](int64_t task) {
      const int64_t b = task / s.stretches(), begin = task % s.stretches() * kStretch;
      sums_of_stretch<T, kind, Target>(read<T>(logits), source, s, b, begin,
                                       std::min(s.N, begin + kStretch), static_cast<T>(eps),
                                       entropy, partial.data() + task * s.K * 4);
    });
    for (int64_t b = 0; b < s.B; ++b) {
      for (int64_t j = 0; j < s.K * 4; ++j) {
        double total = 0;
        for (int64_t stretch = 0; stretch < s.stretches(); ++stretch) {
          total += partial[(b * s.stretches() + stretch) * s.K * 4 + j];
        }
        write<T>(out)[b * s.K * 4 + j] = static_cast<T>(total);
      }
    }
  });
  return out;
}

Tensor dice_ce_sums_backward(const Tensor& grad_any, const Tensor& logits_any,
                             const Tensor& target_any, int64_t activation, int64_t ignore_index,
                             double eps) {
  const Shape s = checked_shape(logits_any, target_any);
  const Tensor logits = torch::stable::contiguous(logits_any);
  const Tensor target = torch::stable::contiguous(target_any);
  const Tensor grad = torch::stable::contiguous(grad_any);
  Tensor out = fresh(logits, {s.B, s.K, s.N}, logits.scalar_type());
  const bool labels = target.dim() == 2;
  dispatch(logits.scalar_type(), activation, labels, [&]<class T, Activation kind, class Target>() {
    const auto source = TargetSource<T>::of(target, ignore_index);
    for_each_task(s.B * s.stretches(), [&](int64_t task) {
      const int64_t b = task / s.stretches(), begin = task % s.stretches() * kStretch;
      gradient_of_stretch<T, kind, Target>(read<T>(logits), source, s, b, begin,
                                           std::min(s.N, begin + kStretch), static_cast<T>(eps),
                                           read<T>(grad), write<T>(out));
    });
  });
  return out;
}

// How many pixels hold a label that is neither a class nor ignore_index.
template <class From>
int64_t count_faults(const Tensor& target, int64_t classes, int64_t ignore_index) {
  const int64_t stretches = (target.numel() + kStretch - 1) / kStretch;
  std::vector<int64_t> partial(static_cast<size_t>(stretches));
  const From* label = read<From>(target);
  for_each_task(stretches, [&](int64_t task) {
    const int64_t end = std::min(target.numel(), (task + 1) * kStretch);
    int64_t faults = 0;
#pragma omp simd reduction(+ : faults)
    for (int64_t i = task * kStretch; i < end; ++i) {
      const int64_t value = static_cast<int64_t>(label[i]);
      faults += (value < 0 || value >= classes) && value != ignore_index;
    }
    partial[task] = faults;
  });
  return std::accumulate(partial.begin(), partial.end(), int64_t{0});
}

Tensor label_faults(const Tensor& target_any, int64_t classes, int64_t ignore_index) {
  const Tensor target = torch::stable::contiguous(target_any);
  const auto count = [&]() -> int64_t {
    switch (target.scalar_type()) {
      case ScalarType::Byte:
        return count_faults<uint8_t>(target, classes, ignore_index);
      case ScalarType::Short:
        return count_faults<int16_t>(target, classes, ignore_index);
      case ScalarType::Int:
        return count_faults<int32_t>(target, classes, ignore_index);
      case ScalarType::Long:
        return count_faults<int64_t>(target, classes, ignore_index);
      default:
        STD_TORCH_CHECK(false, "label_faults: no kernel for this dtype of target");
    }
  };
  Tensor out = fresh(target, {}, ScalarType::Long);
  *write<int64_t>(out) = count();
  return out;
}

}  // namespace
}  // namespace cmrfast::cpu

STABLE_TORCH_LIBRARY_IMPL(cmrfast, CPU, m) {
  m.impl("dice_ce_sums", TORCH_BOX(&cmrfast::cpu::dice_ce_sums));
  m.impl("dice_ce_sums_backward", TORCH_BOX(&cmrfast::cpu::dice_ce_sums_backward));
  m.impl("label_faults", TORCH_BOX(&cmrfast::cpu::label_faults));
}

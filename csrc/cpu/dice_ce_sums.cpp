// Four sums per class in one pass over the logits, and their gradient in another.
//
// A task takes a chunk of pixels of one image, tile by tile; a tile stays in the L1 cache while the
// logits of all classes become probabilities, which are never stored elsewhere. Minimum traffic:
// logits and target once, forward; both and the gradient once, backward. Sums are taken in SIMD
// lanes within a tile, in double over tiles, then over chunks in order, for any number of threads.
#include <numeric>
#include <type_traits>
#include <vector>

#include "common.h"
#include "enums.h"
#include "simd_math.h"

namespace cmrfast::cpu {
namespace {

constexpr int64_t kChunk = 16384;       // pixels of a task
constexpr int64_t kTile = 512;          // pixels of a tile, fewer where there are many classes
constexpr int64_t kTileValues = 16384;  // most probabilities in a tile
constexpr int32_t kIgnored = -1;        // the label of a pixel that is left out of the sums

struct Shape {
  int64_t B, K, N;
  int64_t tile() const { return std::min(kTile, kTileValues / K); }
  int64_t chunks() const { return (N + kChunk - 1) / kChunk; }
};

// The target of a tile: labels, loaded once for all classes, or the mask of one class at a time.
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
    const bool counts = (value >= 0) & (value < K) & (value != ignore);  // && would branch
    label[i] = counts ? static_cast<int32_t>(value) : kIgnored;
  }
}

// Whether a dtype holds an integer exactly; only then can a value be equal to it.
template <class From>
bool holds(int64_t value) {
  if constexpr (std::is_floating_point_v<From>) {
    const auto rounded = static_cast<From>(value);
    return rounded >= -0x1p63 && rounded < 0x1p63 && static_cast<int64_t>(rounded) == value;
  } else {
    return value == static_cast<int64_t>(static_cast<From>(value));
  }
}

template <class From, class T>
void load_mask(const void* from, int64_t begin, int64_t n, int64_t ignore, T* t, T* valid) {
  const From* source = static_cast<const From*>(from) + begin;
  const bool any = holds<From>(ignore);
  const From ignored = any ? static_cast<From>(ignore) : From{0};
  for (int64_t i = 0; i < n; ++i) {
    const bool counts = !any || source[i] != ignored;
    t[i] = counts ? static_cast<T>(source[i]) : T{0};
    valid[i] = counts ? T{1} : T{0};
  }
}

// The dtype of the target matters only while a tile is loaded; the loops below are independent of
// it.
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

  // `load` is called once per tile, `load_class` then for each class.
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
  T max[kTile], sum[kTile];
  for (int64_t i = 0; i < n; ++i) max[i] = x[i];
  for (int64_t k = 1; k < K; ++k) {
    const T* row = x + k * N;
    for (int64_t i = 0; i < n; ++i) max[i] = row[i] > max[i] ? row[i] : max[i];
  }
  for (int64_t i = 0; i < n; ++i) sum[i] = 0;
  for (int64_t k = 0; k < K; ++k) {
    const T* row = x + k * N;
    T* out = p + k * n;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      out[i] = simd::exp_nonpositive(row[i] - max[i]);
      sum[i] += out[i];
    }
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    lse[i] = max[i] + simd::log_positive(sum[i]);
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

// Sums p(i) t, p, t and loss(i) over the valid pixels of a tile.
template <class T, class Target, class Probability, class Loss>
Four<T> sum_tile(int64_t n, const Target& tile, Probability probability, Loss loss) {
  T pt = 0, ps = 0, ts = 0, ce = 0;
#pragma omp simd reduction(+ : pt, ps, ts, ce)
  for (int64_t i = 0; i < n; ++i) {
    const bool valid = tile.counts(i);
    const T t = tile.t(i);
    const T unmasked = probability(i);
    const T p = valid ? unmasked : T{0};
    const T entropy = loss(i, unmasked, t);
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
void sum_chunk(const T* logits, const TargetSource<T>& target, const Shape& s, int64_t b,
               int64_t begin, int64_t end, T eps, bool entropy, double* sums) {
  Target tile;
  T p[kTileValues], lse[kTile];
  for (int64_t at = begin; at < end; at += s.tile()) {
    const int64_t n = std::min(s.tile(), end - at);
    const T* x = logits + b * s.K * s.N + at;
    target.load(s, b, at, n, tile);
    if constexpr (activation == Activation::kSoftmax) softmax_tile(x, s.K, s.N, n, p, lse);
    for (int64_t k = 0; k < s.K; ++k) {
      const T* row = x + k * s.N;
      target.load_class(s, b, k, at, n, tile);
      Four<T> four;
      if constexpr (activation == Activation::kSoftmax) {
        four = sum_tile<T>(
            n, tile, [&](int64_t i) { return p[k * n + i]; },
            [&](int64_t i, T, T t) { return t != 0 ? t * (lse[i] - row[i]) : T{0}; });
      } else if constexpr (activation == Activation::kSigmoid) {
        const auto probability = [&](int64_t i) { return Sigmoid<T>(row[i]).p; };
        // The logarithm costs as much as everything else, so it is computed only on request.
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

// The gradient of softmax with labels for few classes: all of a pixel stays in registers.
template <class T, int K>
void gradient_of_few(const T* logits, const TargetSource<T>& target, const Shape& s, int64_t b,
                     int64_t begin, int64_t end, const T* grad, T* out) {
  LabelTile<T> tile;
  T g_overlap[K], g_p[K], g_ce[K];  // in the loop, they would be loaded under a condition
#pragma GCC unroll 8
  for (int k = 0; k < K; ++k) {
    const T* g = grad + 4 * (b * K + k);
    g_overlap[k] = g[0], g_p[k] = g[1], g_ce[k] = g[3];
  }
  for (int64_t at = begin; at < end; at += kTile) {
    const int64_t n = std::min(kTile, end - at), offset = b * K * s.N + at, N = s.N;
    const T* x = logits + offset;
    T* to = out + offset;
    target.load(s, b, at, n, tile);
    const auto pixel = [&](int64_t i) {
      T p[K], own[K], inner[K];
      T max = x[i], sum = 0, mean = 0, weight = 0;
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) {
        p[k] = x[k * N + i];
        max = p[k] > max ? p[k] : max;
      }
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) {
        p[k] = simd::exp_nonpositive(p[k] - max);
        sum += p[k];
      }
      const T scale = 1 / sum;
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) {
        own[k] = static_cast<T>(tile.label[i] == k);  // a condition would become a branch
        p[k] *= scale;
        inner[k] = g_overlap[k] * own[k] + g_p[k];
        mean += p[k] * inner[k];
        weight += g_ce[k] * own[k];
      }
      const T counts = static_cast<T>(tile.label[i] != kIgnored);
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) {
        to[k * N + i] = counts * p[k] * (inner[k] - mean + weight) - own[k] * weight;
      }
    };
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) pixel(i);
  }
}

template <class T, Activation activation, class Target>
void gradient_of_chunk(const T* logits, const TargetSource<T>& target, const Shape& s, int64_t b,
                       int64_t begin, int64_t end, T eps, const T* grad, T* out) {
  if constexpr (activation == Activation::kSoftmax && std::is_same_v<Target, LabelTile<T>>) {
    if (s.K == 2) return gradient_of_few<T, 2>(logits, target, s, b, begin, end, grad, out);
    if (s.K == 3) return gradient_of_few<T, 3>(logits, target, s, b, begin, end, grad, out);
    if (s.K == 4) return gradient_of_few<T, 4>(logits, target, s, b, begin, end, grad, out);
    if (s.K == 5) return gradient_of_few<T, 5>(logits, target, s, b, begin, end, grad, out);
  }
  Target tile;
  T p[kTileValues], lse[kTile], mean[kTile], weight[kTile];
  for (int64_t at = begin; at < end; at += s.tile()) {
    const int64_t n = std::min(s.tile(), end - at);
    const int64_t offset = b * s.K * s.N + at;
    const T* x = logits + offset;
    target.load(s, b, at, n, tile);
    if constexpr (activation == Activation::kSoftmax) {
      softmax_tile(x, s.K, s.N, n, p, lse);
      for (int64_t i = 0; i < n; ++i) mean[i] = weight[i] = 0;
      for (int64_t k = 0; k < s.K; ++k) {
        const T* g = grad + 4 * (b * s.K + k);
        const T g_overlap = g[0], g_p = g[1], g_ce = g[3];
        target.load_class(s, b, k, at, n, tile);
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
          const T inner = g_overlap * tile.t(i) + g_p;
          mean[i] += p[k * n + i] * (tile.counts(i) ? inner : T{0});
          weight[i] += g_ce * tile.t(i);
        }
      }
    }
    for (int64_t k = 0; k < s.K; ++k) {
      const T* g = grad + 4 * (b * s.K + k);
      const T g_overlap = g[0], g_p = g[1], g_ce = g[3];
      const T* row = x + k * s.N;
      T* to = out + offset + k * s.N;
      target.load_class(s, b, k, at, n, tile);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const T t = tile.t(i);
        const bool counts = tile.counts(i);
        const T inner = counts ? g_overlap * t + g_p : T{0};
        if constexpr (activation == Activation::kSoftmax) {
          to[i] = p[k * n + i] * (inner - mean[i] + weight[i]) - g_ce * t;
        } else if constexpr (activation == Activation::kSigmoid) {
          const Sigmoid<T> value(row[i]);
          to[i] = inner * value.p * (1 - value.p) + (counts ? g_ce * (value.p - t) : T{0});
        } else {
          to[i] = inner - (t != 0 ? g_ce * t / (row[i] + eps) : T{0});
        }
      }
    }
  }
}

// Calls body<T, activation, Target>() for the dtype of the logits and the kind of target.
template <class Body>
void dispatch(const Tensor& logits, const Tensor& target, int64_t activation, const Body& body) {
  const auto with_target = [&]<class T, class Target>() {
    switch (static_cast<Activation>(activation)) {
      case Activation::kSoftmax:
        return body.template operator()<T, Activation::kSoftmax, Target>();
      case Activation::kSigmoid:
        return body.template operator()<T, Activation::kSigmoid, Target>();
      case Activation::kNone:
        return body.template operator()<T, Activation::kNone, Target>();
    }
  };
  with_real("dice_ce_sums: logits", logits.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    target.dim() == 2 ? with_target.template operator()<T, LabelTile<T>>()
                      : with_target.template operator()<T, MaskTile<T>>();
  });
}

// Calls body(image, begin, end) for every chunk of pixels, in tasks.
template <class Body>
void for_each_chunk(const Shape& s, const Body& body) {
  for_each_task(s.B * s.chunks(), [&](int64_t task) {
    const int64_t begin = task % s.chunks() * kChunk;
    body(task / s.chunks(), begin, std::min(s.N, begin + kChunk));
  });
}

Shape checked_shape(const Tensor& logits, const Tensor& target) {
  const Shape s{logits.size(0), logits.size(1), logits.size(2)};
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
  std::vector<double> partial(static_cast<size_t>(s.B * s.chunks() * s.K * 4));
  dispatch(logits, target, activation, [&]<class T, Activation kind, class Target>() {
    const auto source = TargetSource<T>::of(target, ignore_index);
    for_each_chunk(s, [&](int64_t b, int64_t begin, int64_t end) {
      double* sums = partial.data() + (b * s.chunks() + begin / kChunk) * s.K * 4;
      sum_chunk<T, kind, Target>(read<T>(logits), source, s, b, begin, end, static_cast<T>(eps),
                                 entropy, sums);
    });
    for (int64_t b = 0; b < s.B; ++b) {
      for (int64_t j = 0; j < s.K * 4; ++j) {
        double total = 0;
        for (int64_t chunk = 0; chunk < s.chunks(); ++chunk) {
          total += partial[(b * s.chunks() + chunk) * s.K * 4 + j];
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
  STD_TORCH_CHECK(grad.scalar_type() == logits.scalar_type() && grad.numel() == s.B * s.K * 4,
                  "dice_ce_sums_backward: grad must be (B, K, 4), of the logits' dtype");
  Tensor out = fresh(logits, {s.B, s.K, s.N}, logits.scalar_type());
  dispatch(logits, target, activation, [&]<class T, Activation kind, class Target>() {
    const auto source = TargetSource<T>::of(target, ignore_index);
    for_each_chunk(s, [&](int64_t b, int64_t begin, int64_t end) {
      gradient_of_chunk<T, kind, Target>(read<T>(logits), source, s, b, begin, end,
                                         static_cast<T>(eps), read<T>(grad), write<T>(out));
    });
  });
  return out;
}

// The number of pixels whose label is neither a class nor ignore_index.
template <class From>
int64_t count_faults(const Tensor& target, int64_t classes, int64_t ignore_index) {
  const int64_t chunks = (target.numel() + kChunk - 1) / kChunk;
  std::vector<int64_t> partial(static_cast<size_t>(chunks));
  const From* label = read<From>(target);
  for_each_task(chunks, [&](int64_t task) {
    const int64_t end = std::min(target.numel(), (task + 1) * kChunk);
    int64_t faults = 0;
#pragma omp simd reduction(+ : faults)
    for (int64_t i = task * kChunk; i < end; ++i) {
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

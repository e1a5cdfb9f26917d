// Four sums per class in one pass over the logits, and their gradient in another.
//
// A block takes a chunk of pixels of one image and a group of classes, which a thread keeps in
// registers; sums are taken over the block, then over blocks in order. With more classes than a
// group, softmax first stores the largest logit and the sum of exponentials of each pixel. Minimum
// traffic: logits and target once, forward; both and the gradient once, backward.
#include "dtypes.cuh"

namespace cmrfast::cuda {
namespace {

// The target of a pixel for one class, and whether the pixel counts.
template <class T>
struct ClassTarget {
  T t;
  bool valid;
};

// The target of a pixel: its label, read once for all classes, or a mask per class.
template <class T>
struct Target {
  const Pixels& s;
  int64_t label = -1, b, pixel;

  __device__ Target(const Pixels& s, int64_t b, int64_t pixel) : s(s), b(b), pixel(pixel) {
    if (!s.labels) return;
    int64_t value = -1;
    with_integer(s.target_dtype, [&](auto zero) {
      value = static_cast<int64_t>(static_cast<const decltype(zero)*>(s.target)[b * s.N + pixel]);
    });
    if (value >= 0 && value < s.K && value != s.ignore_index) label = value;
  }

  __device__ ClassTarget<T> of(int64_t k) const {
    if (s.labels) return {static_cast<T>(label == k), label >= 0};
    const int64_t at = (b * s.K + k) * s.N + pixel;
    if (s.target_dtype == Dtype::kFloat32) return mask(static_cast<const float*>(s.target)[at]);
    if (s.target_dtype == Dtype::kFloat64) return mask(static_cast<const double*>(s.target)[at]);
    ClassTarget<T> target{};
    with_integer(s.target_dtype, [&](auto zero) {
      target = mask(static_cast<const decltype(zero)*>(s.target)[at]);
    });
    return target;
  }

 private:
  // No pixel is ignored if the dtype cannot represent ignore_index.
  template <class From>
  __device__ ClassTarget<T> mask(From value) const {
    const From ignored = static_cast<From>(s.ignore_index);
    const bool valid = value != ignored || static_cast<int64_t>(ignored) != s.ignore_index;
    return {valid ? static_cast<T>(value) : T{0}, valid};
  }
};

template <class T>
struct Sigmoid {
  T x, e, p;
  __device__ explicit Sigmoid(T logit) : x(logit), e(exp_of(x < 0 ? x : -x)) {
    p = (x < 0 ? e : T{1}) / (1 + e);
  }
  __device__ T softplus() const { return (x < 0 ? T{0} : x) + log1p_of(e); }  // log(1 + exp(x))
};

// The logits of G classes of a pixel from class `begin` on, in registers; for G = 0 of all classes,
// loaded again at every use.
template <class In, int G>
struct Logits {
  using T = Acc<In>;
  const In* at;
  int64_t count, N;
  T values[G > 0 ? G : 1];

  __device__ Logits(const Pixels& s, int64_t b, int64_t pixel, int64_t begin = 0)
      : at(static_cast<const In*>(s.logits) + (b * s.K + begin) * s.N + pixel),
        count(s.K - begin),
        N(s.N) {
    if constexpr (G > 0) {
#pragma unroll
      for (int k = 0; k < G; ++k) values[k] = k < count ? to_real<T>(at[k * N]) : T{0};
    }
  }

  // Calls body(k, logit) for every class.
  template <class Body>
  __device__ void each(const Body& body) const {
    if constexpr (G > 0) {
#pragma unroll
      for (int k = 0; k < G; ++k) {
        if (k < count) body(k, values[k]);
      }
    } else {
      for (int64_t k = 0; k < count; ++k) body(k, to_real<T>(at[k * N]));
    }
  }
};

// The softmax of a pixel: its largest logit and the sum of exponentials.
template <class T>
struct Softmax {
  T max = 0, sum = 1;

  Softmax() = default;
  template <class In, int G>
  __device__ explicit Softmax(const Logits<In, G>& logits) : sum(0) {
    max = to_real<T>(logits.at[0]);
    logits.each([&](int64_t, T x) { max = x > max ? x : max; });
    logits.each([&](int64_t, T x) { sum += exp_of(x - max); });
  }
  __device__ T exponential(T x) const { return exp_of(x - max); }  // sum times the probability
  __device__ T minus_log(T x) const { return (max - x) + log_of(sum); }
};

template <class In>
__global__ void __launch_bounds__(kThreads)
    prepare_softmax(Pixels s, Chunks chunks, Softmax<Acc<In>>* out) {
  for (int64_t n = blockIdx.x; n < chunks.total; n += gridDim.x) {
    const Chunk chunk(chunks, n);
    for (int64_t i = chunk.begin + threadIdx.x; i < chunk.end; i += kThreads) {
      out[chunk.item * s.N + i] = Softmax<Acc<In>>(Logits<In, 0>(s, chunk.item, i));
    }
  }
}

// Sums of p t, p, t and cross entropy for groups of G classes, from group blockIdx.y on.
template <class In, Activation activation, int G>
__global__ void __launch_bounds__(kThreads) sum_classes(DiceCeSums call, Chunks chunks) {
  using T = Acc<In>;
  const Pixels& s = call.pixels;
  const T eps = static_cast<T>(s.eps), scale = 1 / (1 + static_cast<T>(s.K) * eps);
  for (int64_t n = blockIdx.x; n < chunks.total; n += gridDim.x) {
    const Chunk chunk(chunks, n);
    for (int64_t begin = blockIdx.y * int64_t{G}; begin < s.K; begin += gridDim.y * int64_t{G}) {
      T sums[4 * G] = {};
      for (int64_t i = chunk.begin + threadIdx.x; i < chunk.end; i += kThreads) {
        const Target<T> target(s, chunk.item, i);
        const Logits<In, G> logits(s, chunk.item, i, begin);
        Softmax<T> softmax;
        if constexpr (activation == Activation::kSoftmax) {
          softmax = call.softmax == nullptr
                        ? Softmax<T>(logits)
                        : static_cast<const Softmax<T>*>(call.softmax)[chunk.item * s.N + i];
        }
        const T inverse = 1 / softmax.sum;
        logits.each([&](int64_t k, T x) {
          const auto [t, valid] = target.of(begin + k);
          if (!valid) return;
          T p = x, entropy = 0;
          if constexpr (activation == Activation::kSoftmax) {
            p = softmax.exponential(x) * inverse;
            if (t != 0) entropy = t * softmax.minus_log(x);
          } else if constexpr (activation == Activation::kSigmoid) {
            const Sigmoid<T> value(x);
            p = value.p;
            if (call.entropy) entropy = value.softplus() - x * t;
          } else if (t != 0) {
            entropy = -t * log_of((x + eps) * scale);
          }
          sums[4 * k] += p * t;
          sums[4 * k + 1] += p;
          sums[4 * k + 2] += t;
          sums[4 * k + 3] += entropy;
        });
      }
      const double total = block_sums(sums);
      if (threadIdx.x < 4 * smaller(G, s.K - begin)) {
        call.partial[(n * s.K + begin) * 4 + threadIdx.x] = total;
      }
    }
  }
}

template <class In, Activation activation, int G>
__global__ void __launch_bounds__(kThreads) gradients(DiceCeSumsBackward call, Chunks chunks) {
  using T = Acc<In>;
  const Pixels& s = call.pixels;
  for (int64_t n = blockIdx.x; n < chunks.total; n += gridDim.x) {
    const Chunk chunk(chunks, n);
    const T* grad = static_cast<const T*>(call.grad) + chunk.item * s.K * 4;
    for (int64_t i = chunk.begin + threadIdx.x; i < chunk.end; i += kThreads) {
      const Target<T> target(s, chunk.item, i);
      const Logits<In, G> logits(s, chunk.item, i);
      In* out = static_cast<In*>(call.out) + chunk.item * s.K * s.N + i;
      const auto write = [&](int64_t k, T value) { out[k * s.N] = from_real<In>(value); };
      // The gradient of p from the sums of p t and p.
      const auto grad_p = [&](int64_t k, ClassTarget<T> of) {
        return of.valid ? grad[4 * k] * of.t + grad[4 * k + 1] : T{0};
      };
      Softmax<T> softmax;
      T mean = 0, weight = 0, inverse = 0;
      if constexpr (activation == Activation::kSoftmax) {
        softmax = Softmax<T>(logits);
        inverse = 1 / softmax.sum;
        logits.each([&](int64_t k, T x) {
          const ClassTarget<T> of = target.of(k);
          mean += softmax.exponential(x) * inverse * grad_p(k, of);
          weight += grad[4 * k + 3] * of.t;
        });
      }
      logits.each([&](int64_t k, T x) {
        const ClassTarget<T> of = target.of(k);
        const T inner = grad_p(k, of), entropy = grad[4 * k + 3];
        if constexpr (activation == Activation::kSoftmax) {
          const T p = softmax.exponential(x) * inverse;
          write(k, p * (inner - mean + weight) - entropy * of.t);
        } else if constexpr (activation == Activation::kSigmoid) {
          const T p = Sigmoid<T>(x).p;
          write(k, inner * p * (1 - p) + (of.valid ? entropy * (p - of.t) : T{0}));
        } else {
          const T slope = of.t != 0 ? entropy * of.t / (x + static_cast<T>(s.eps)) : T{0};
          write(k, inner - slope);
        }
      });
    }
  }
}

// Atomic sums of integers are equal in any order.
__global__ void __launch_bounds__(kThreads) count_faults(LabelFaults call) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  unsigned long long faults = 0;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < call.count;
       i += step) {
    with_dtype(call.dtype, [&](auto zero) {
      using From = decltype(zero);
      if constexpr (std::is_integral_v<From>) {
        const auto value = static_cast<int64_t>(static_cast<const From*>(call.target)[i]);
        faults += (value < 0 || value >= call.classes) && value != call.ignore_index;
      }
    });
  }
  faults = warp_sum(faults);
  if (lane_of_warp() == 0) atomicAdd(reinterpret_cast<unsigned long long*>(call.out), faults);
}

template <class In>
constexpr int kGroup = class_group(std::is_same_v<In, double> ? Dtype::kFloat64 : Dtype::kFloat32);

template <class In, Activation activation>
void launch_sums(const DiceCeSums& call, void* stream) {
  using T = Acc<In>;
  const Pixels& s = call.pixels;
  const Chunks chunks(s.B, s.N, kPixelChunk);
  const dim3 threads(kThreads);
  dim3 blocks = blocks_for(chunks.total);
  if (chunks.total > 0) {
    if (call.softmax != nullptr) {
      CMRFAST_LAUNCH(prepare_softmax<In>, blocks, threads, stream, s, chunks,
                     static_cast<Softmax<T>*>(call.softmax));
    }
    // Only softmax needs all classes of a pixel together.
    constexpr int group = activation == Activation::kSoftmax ? kGroup<In> : 4;
    blocks.y = static_cast<unsigned>(smaller(ceil_div(s.K, group), 65535));
    if (s.K <= 4) {
      CMRFAST_LAUNCH((sum_classes<In, activation, 4>), blocks, threads, stream, call, chunks);
    } else {
      CMRFAST_LAUNCH((sum_classes<In, activation, group>), blocks, threads, stream, call, chunks);
    }
  }
  launch_sum_partials(call.partial, s.B, chunks.each.value * (s.N > 0), static_cast<int>(4 * s.K),
                      1.0, static_cast<T*>(call.out), stream);
}

template <class In, Activation activation>
void launch_gradients(const DiceCeSumsBackward& call, void* stream) {
  const Pixels& s = call.pixels;
  const Chunks chunks(s.B, s.N, kPixelChunk);
  const dim3 blocks = blocks_for(chunks.total), threads(kThreads);
  if (activation != Activation::kSoftmax || s.K > kGroup<In>) {
    CMRFAST_LAUNCH((gradients<In, activation, 0>), blocks, threads, stream, call, chunks);
  } else if constexpr (activation == Activation::kSoftmax) {
    if (s.K <= 4) {
      CMRFAST_LAUNCH((gradients<In, activation, 4>), blocks, threads, stream, call, chunks);
    } else {
      CMRFAST_LAUNCH((gradients<In, activation, kGroup<In>>), blocks, threads, stream, call,
                     chunks);
    }
  }
}

// Calls body<In, activation>().
template <class Body>
void dispatch(const Pixels& s, const Body& body) {
  with_floating(s.dtype, [&](auto zero) {
    using In = decltype(zero);
    if (s.activation == Activation::kSoftmax) body.template operator()<In, Activation::kSoftmax>();
    if (s.activation == Activation::kSigmoid) body.template operator()<In, Activation::kSigmoid>();
    if (s.activation == Activation::kNone) body.template operator()<In, Activation::kNone>();
  });
}

}  // namespace
}  // namespace cmrfast::cuda

using namespace cmrfast::cuda;

const char* cmrfast_dice_ce_sums(const DiceCeSums& call, void* stream) {
  if (call.pixels.B * call.pixels.K == 0) return nullptr;
  dispatch(call.pixels, [&]<class In, auto kind>() { launch_sums<In, kind>(call, stream); });
  return launch_error();
}

const char* cmrfast_dice_ce_sums_backward(const DiceCeSumsBackward& call, void* stream) {
  if (call.pixels.B * call.pixels.K * call.pixels.N == 0) return nullptr;
  dispatch(call.pixels, [&]<class In, auto kind>() { launch_gradients<In, kind>(call, stream); });
  return launch_error();
}

const char* cmrfast_label_faults(const LabelFaults& call, void* stream) {
  if (call.count == 0) return nullptr;
  const dim3 blocks = blocks_for(ceil_div(call.count, 16 * kThreads));
  CMRFAST_LAUNCH(count_faults, blocks, dim3(kThreads), stream, call);
  return launch_error();
}

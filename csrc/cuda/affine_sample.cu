// Sampling at affine positions without a grid in memory, and both gradients of it.
//
// Forward: a thread an output voxel, its taps shared by all channels. Gradient in the images: sums
// in integers, multiples of 2^-61 of the largest gradient times the voxel count, which come out the
// same in whatever order atomics add them. Gradient in the matrix: sums of a block, then of blocks,
// in order. Least bytes: images and output once; four (eight) taps a voxel come from the caches.
#include "sampling.cuh"

namespace cmrfast::cuda {
namespace {

constexpr int64_t kStretch = 4 * kThreads;

template <class In, int DIMS>
__global__ void __launch_bounds__(kThreads)
    sample_linear(AffineSample call, Grid<DIMS> grid, Stretches stretches) {
  using T = Wide<In>;
  const Sampling& s = call.sampling;
  const T fill = s.border == Border::kHalf ? static_cast<T>(call.fill) : T{0};
  for (int64_t n = blockIdx.x; n < stretches.total; n += gridDim.x) {
    const Stretch stretch(stretches, n);
    const double* matrix = s.matrix + stretch.item * DIMS * (DIMS + 1);
    for (int64_t e = stretch.begin + threadIdx.x; e < stretch.end; e += kThreads) {
      const Taps<T, DIMS> taps(grid, Position<DIMS>(grid, matrix, e), s.border);
      const In* image = static_cast<const In*>(call.images) + stretch.item * s.C * grid.numel;
      In* to = static_cast<In*>(call.out) + stretch.item * s.C * grid.out_numel + e;
      for (int64_t c = 0; c < s.C; ++c, image += grid.numel, to += grid.out_numel) {
        T sum = 0;
#pragma unroll
        for (int t = 0; t < taps.count; ++t) sum += taps.weight(t) * taps.voxel(image, t);
        *to = from_real<In>(taps.outside ? fill : sum);
      }
    }
  }
}

// Nearest copies voxels, so only their size counts; `fill` comes in their dtype.
template <class T, int DIMS>
__global__ void __launch_bounds__(kThreads)
    sample_nearest(AffineSample call, Grid<DIMS> grid, Stretches stretches, T fill) {
  const Sampling& s = call.sampling;
  for (int64_t n = blockIdx.x; n < stretches.total; n += gridDim.x) {
    const Stretch stretch(stretches, n);
    const double* matrix = s.matrix + stretch.item * DIMS * (DIMS + 1);
    for (int64_t e = stretch.begin + threadIdx.x; e < stretch.end; e += kThreads) {
      const Position<DIMS> position(grid, matrix, e);
      const int64_t at = nearest(grid, position, s.mode, s.border);
      const T* image = static_cast<const T*>(call.images) + stretch.item * s.C * grid.numel;
      T* to = static_cast<T*>(call.out) + stretch.item * s.C * grid.out_numel + e;
      for (int64_t c = 0; c < s.C; ++c, image += grid.numel, to += grid.out_numel) {
        *to = at < 0 ? fill : image[at];
      }
    }
  }
}

// The largest finite |gradient| of each channel, as bits: those of positive doubles sort as
// integers.
template <class In>
__global__ void __launch_bounds__(kThreads)
    find_largest(const In* grad, Stretches stretches, int64_t* largest) {
  using T = Wide<In>;
  for (int64_t n = blockIdx.x; n < stretches.total; n += gridDim.x) {
    const Stretch stretch(stretches, n);
    T most = 0;
    for (int64_t e = stretch.begin + threadIdx.x; e < stretch.end; e += kThreads) {
      const T size = fabs(to_real<T>(grad[stretch.item * stretches.count + e]));
      if (size - size == 0 && size > most) most = size;
    }
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) {
      const T other = __shfl_xor_sync(kWholeWarp, most, step);
      most = other > most ? other : most;
    }
    if (lane_of_warp() != 0) continue;
    const double value = static_cast<double>(most);
    unsigned long long bits;
    memcpy(&bits, &value, sizeof(bits));
    atomicMax(reinterpret_cast<unsigned long long*>(largest) + stretch.item, bits);
  }
}

// What turns gradients of a channel into integers: a power of two, such that even 2^bits of them at
// one voxel stay below 2^62; 2^1000 at most, the finest that gradients of any use need.
__device__ double integer_scale(int64_t largest, int bits) {
  double value;
  int exponent;
  memcpy(&value, &largest, sizeof(value));
  frexp(value, &exponent);
  const int wanted = 61 - bits - exponent;
  return ldexp(1.0, wanted < 1000 ? wanted : 1000);
}

int bits_of(int64_t count) {
  int bits = 0;
  while ((int64_t{1} << bits) < count) ++bits;
  return bits;
}

template <class In, int DIMS>
__global__ void __launch_bounds__(kThreads)
    scatter(AffineSampleBackward call, Grid<DIMS> grid, Stretches stretches, int bits) {
  using T = Wide<In>;
  const Sampling& s = call.sampling;
  for (int64_t n = blockIdx.x; n < stretches.total; n += gridDim.x) {
    const Stretch stretch(stretches, n);
    const double* matrix = s.matrix + stretch.item * DIMS * (DIMS + 1);
    for (int64_t c = 0; c < s.C; ++c) {
      const int64_t plane = stretch.item * s.C + c;
      const double scale = integer_scale(call.largest[plane], bits);
      const In* grad = static_cast<const In*>(call.grad) + plane * grid.out_numel;
      const auto add = [&](int64_t at, T value) {
        if (value - value == 0) {
          atomicAdd(reinterpret_cast<unsigned long long*>(call.sums) + plane * grid.numel + at,
                    static_cast<unsigned long long>(llrint(static_cast<double>(value) * scale)));
        } else {  // no integer holds it: the voxel's gradient is NaN, whoever writes it
          static_cast<In*>(call.to_images)[plane * grid.numel + at] = from_real<In>(T{NAN});
        }
      };
      for (int64_t e = stretch.begin + threadIdx.x; e < stretch.end; e += kThreads) {
        const Position<DIMS> position(grid, matrix, e);
        const T pull = to_real<T>(grad[e]);
        if (s.mode != Mode::kLinear) {
          const int64_t at = nearest(grid, position, s.mode, s.border);
          if (at >= 0) add(at, pull);
          continue;
        }
        const Taps<T, DIMS> taps(grid, position, s.border);
#pragma unroll
        for (int t = 0; t < taps.count; ++t) {
          if (taps.counts >> t & 1) add(taps.index(t), taps.weight(t) * pull);
        }
      }
    }
  }
}

template <class In>
__global__ void __launch_bounds__(kThreads)
    finish_scatter(AffineSampleBackward call, Stretches stretches, int bits) {
  using T = Wide<In>;
  In* to = static_cast<In*>(call.to_images);
  for (int64_t n = blockIdx.x; n < stretches.total; n += gridDim.x) {
    const Stretch stretch(stretches, n);
    const double step = 1 / integer_scale(call.largest[stretch.item], bits);
    for (int64_t e = stretch.begin + threadIdx.x; e < stretch.end; e += kThreads) {
      const int64_t at = stretch.item * stretches.count + e;
      const T sum = static_cast<T>(static_cast<double>(call.sums[at]) * step);
      to[at] = from_real<In>(to_real<T>(to[at]) + sum);
    }
  }
}

template <class In, int DIMS>
__global__ void __launch_bounds__(kThreads)
    pull_matrix(AffineSampleBackward call, Grid<DIMS> grid, Stretches stretches) {
  using T = Wide<In>;
  constexpr int entries = DIMS * (DIMS + 1), padded = DIMS == 2 ? 8 : 16;
  const Sampling& s = call.sampling;
  for (int64_t n = blockIdx.x; n < stretches.total; n += gridDim.x) {
    const Stretch stretch(stretches, n);
    const double* matrix = s.matrix + stretch.item * entries;
    double sums[padded] = {};
    for (int64_t e = stretch.begin + threadIdx.x; e < stretch.end; e += kThreads) {
      const Position<DIMS> position(grid, matrix, e);
      const Taps<T, DIMS> taps(grid, position, s.border);
      if (taps.outside) continue;
      T along[DIMS] = {};
      const In* image = static_cast<const In*>(call.images) + stretch.item * s.C * grid.numel;
      const In* grad = static_cast<const In*>(call.grad) + stretch.item * s.C * grid.out_numel + e;
      for (int64_t c = 0; c < s.C; ++c, image += grid.numel, grad += grid.out_numel) {
        T slope[DIMS] = {};
#pragma unroll
        for (int t = 0; t < taps.count; ++t) {
          const T voxel = taps.voxel(image, t);
#pragma unroll
          for (int a = 0; a < DIMS; ++a) {
            T product = (t >> a & 1) ? voxel : -voxel;
#pragma unroll
            for (int d = 0; d < DIMS; ++d) product *= d == a ? T{1} : taps.share(t, d);
            slope[a] += product;
          }
        }
#pragma unroll
        for (int a = 0; a < DIMS; ++a) along[a] += to_real<T>(*grad) * slope[a];
      }
#pragma unroll
      for (int a = 0; a < DIMS; ++a) {
        const double pull = taps.moves[a] ? static_cast<double>(along[a]) : 0.0;
        double* row = sums + a * (DIMS + 1);
#pragma unroll
        for (int d = 0; d < DIMS; ++d) row[d] += pull * position.out[d];
        row[DIMS] += pull;
      }
    }
    const double total = block_sums(sums);
    if (threadIdx.x < entries) call.partial[n * entries + threadIdx.x] = total;
  }
}

template <int DIMS>
void launch_forward(const AffineSample& call, void* stream) {
  const Sampling& s = call.sampling;
  const Grid<DIMS> grid(s);
  const Stretches stretches(s.B, grid.out_numel, kStretch);
  if (stretches.total * s.C == 0) return;
  const dim3 blocks = blocks_for(stretches.total), threads(kThreads);
  if (s.mode != Mode::kLinear) {
    with_dtype(s.dtype, [&](auto zero) {
      using T = decltype(zero);
      using Word = std::conditional_t<
          sizeof(T) == 1, uint8_t,
          std::conditional_t<sizeof(T) == 2, uint16_t,
                             std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>>;
      const T value = from_real<T>(call.fill);
      Word fill;
      memcpy(&fill, &value, sizeof(fill));
      CMRFAST_LAUNCH((sample_nearest<Word, DIMS>), blocks, threads, stream, call, grid, stretches,
                     fill);
    });
    return;
  }
  with_floating(s.dtype, [&](auto zero) {
    CMRFAST_LAUNCH((sample_linear<decltype(zero), DIMS>), blocks, threads, stream, call, grid,
                   stretches);
  });
}

template <class In, int DIMS>
void launch_backward(const AffineSampleBackward& call, void* stream) {
  const Sampling& s = call.sampling;
  const Grid<DIMS> grid(s);
  const dim3 threads(kThreads);
  const bool any = s.B * s.C * grid.out_numel > 0 && grid.numel > 0;
  if (any && call.to_images != nullptr) {
    const int bits = bits_of(grid.out_numel);
    const Stretches planes(s.B * s.C, grid.out_numel, 16 * kThreads);
    const Stretches out(s.B, grid.out_numel, kStretch);
    const Stretches in(s.B * s.C, grid.numel, kStretch);
    CMRFAST_LAUNCH(find_largest<In>, blocks_for(planes.total), threads, stream,
                   static_cast<const In*>(call.grad), planes, call.largest);
    CMRFAST_LAUNCH((scatter<In, DIMS>), blocks_for(out.total), threads, stream, call, grid, out,
                   bits);
    CMRFAST_LAUNCH(finish_scatter<In>, blocks_for(in.total), threads, stream, call, in, bits);
  }
  const Stretches stretches(s.B, grid.out_numel, kMatrixStretch);
  if (call.to_matrix != nullptr && stretches.total > 0) {
    CMRFAST_LAUNCH((pull_matrix<In, DIMS>), blocks_for(stretches.total), threads, stream, call,
                   grid, stretches);
    launch_sum_partials(call.partial, s.B, stretches.each.value, DIMS * (DIMS + 1), 1.0,
                        call.to_matrix, stream);
  }
}

}  // namespace
}  // namespace cmrfast::cuda

using namespace cmrfast::cuda;

const char* cmrfast_affine_sample(const AffineSample& call, void* stream) {
  call.sampling.dims == 2 ? launch_forward<2>(call, stream) : launch_forward<3>(call, stream);
  return launch_error();
}

const char* cmrfast_affine_sample_backward(const AffineSampleBackward& call, void* stream) {
  with_floating(call.sampling.dtype, [&](auto zero) {
    using In = decltype(zero);
    call.sampling.dims == 2 ? launch_backward<In, 2>(call, stream)
                            : launch_backward<In, 3>(call, stream);
  });
  return launch_error();
}

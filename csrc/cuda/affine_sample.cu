// Affine sampling without a grid in memory, and its gradients.
//
// Forward: one thread per output voxel; all channels share its taps. Gradient of the images: atomic
// sums of integers, in units of 2^-61 of the largest gradient times the voxel count, which are
// equal in any order. Gradient of the matrix: sums over a block, then over blocks in order. Minimum
// traffic: images and output once; the 8 (4) taps of a voxel come from the caches.
#include "sampling.cuh"

namespace cmrfast::cuda {
namespace {

constexpr int64_t kChunk = 4 * kThreads;

template <class In, int DIMS>
__global__ void __launch_bounds__(kThreads)
    sample_linear(AffineSample call, Grid<DIMS> grid, Chunks chunks) {
  using T = Acc<In>;
  const Sampling& s = call.sampling;
  const T fill = s.border == Border::kClampHalf ? static_cast<T>(call.fill) : T{0};
  for (int64_t n = blockIdx.x; n < chunks.total; n += gridDim.x) {
    const Chunk chunk(chunks, n);
    const double* matrix = s.matrix + chunk.item * DIMS * (DIMS + 1);
    for (int64_t e = chunk.begin + threadIdx.x; e < chunk.end; e += kThreads) {
      const Taps<T, DIMS> taps(grid, Position<DIMS>(grid, matrix, e), s.border);
      const In* image = static_cast<const In*>(call.images) + chunk.item * s.C * grid.numel;
      In* to = static_cast<In*>(call.out) + chunk.item * s.C * grid.out_numel + e;
      for (int64_t c = 0; c < s.C; ++c, image += grid.numel, to += grid.out_numel) {
        T sum = 0;
#pragma unroll
        for (int t = 0; t < taps.count; ++t) sum += taps.weight(t) * taps.voxel(image, t);
        *to = from_real<In>(taps.outside ? fill : sum);
      }
    }
  }
}

// Nearest copies voxels, so only their size matters; `fill` has their dtype.
template <class T, int DIMS>
__global__ void __launch_bounds__(kThreads)
    sample_nearest(AffineSample call, Grid<DIMS> grid, Chunks chunks, T fill) {
  const Sampling& s = call.sampling;
  for (int64_t n = blockIdx.x; n < chunks.total; n += gridDim.x) {
    const Chunk chunk(chunks, n);
    const double* matrix = s.matrix + chunk.item * DIMS * (DIMS + 1);
    for (int64_t e = chunk.begin + threadIdx.x; e < chunk.end; e += kThreads) {
      const Position<DIMS> position(grid, matrix, e);
      const int64_t at = nearest(grid, position, s.mode, s.border);
      const T* image = static_cast<const T*>(call.images) + chunk.item * s.C * grid.numel;
      T* to = static_cast<T*>(call.out) + chunk.item * s.C * grid.out_numel + e;
      for (int64_t c = 0; c < s.C; ++c, image += grid.numel, to += grid.out_numel) {
        *to = at < 0 ? fill : image[at];
      }
    }
  }
}

// The largest finite |gradient| of each channel, as bits: positive doubles sort like integers.
template <class In>
__global__ void __launch_bounds__(kThreads)
    find_max(const In* grad, Chunks chunks, int64_t* largest) {
  using T = Acc<In>;
  for (int64_t n = blockIdx.x; n < chunks.total; n += gridDim.x) {
    const Chunk chunk(chunks, n);
    T max = 0;
    for (int64_t e = chunk.begin + threadIdx.x; e < chunk.end; e += kThreads) {
      const T size = fabs(to_real<T>(grad[chunk.item * chunks.count + e]));
      if (size - size == 0 && size > max) max = size;
    }
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) {
      const T other = __shfl_xor_sync(kWholeWarp, max, step);
      max = other > max ? other : max;
    }
    if (lane_of_warp() != 0) continue;
    const double value = static_cast<double>(max);
    unsigned long long bits;
    memcpy(&bits, &value, sizeof(bits));
    atomicMax(reinterpret_cast<unsigned long long*>(largest) + chunk.item, bits);
  }
}

// The power of two that turns gradients of a channel into integers: 2^bits of them at one voxel
// stay below 2^62. At most 2^1000, which leaves digits for any gradient that matters.
__device__ double integer_scale(int64_t largest, int bits) {
  double value;
  int exponent;
  memcpy(&value, &largest, sizeof(value));
  frexp(value, &exponent);
  const int power = 61 - bits - exponent;
  return ldexp(1.0, power < 1000 ? power : 1000);
}

int bits_of(int64_t count) {
  int bits = 0;
  while ((int64_t{1} << bits) < count) ++bits;
  return bits;
}

template <class In, int DIMS>
__global__ void __launch_bounds__(kThreads)
    scatter_gradient(AffineSampleBackward call, Grid<DIMS> grid, Chunks chunks, int bits) {
  using T = Acc<In>;
  const Sampling& s = call.sampling;
  for (int64_t n = blockIdx.x; n < chunks.total; n += gridDim.x) {
    const Chunk chunk(chunks, n);
    const double* matrix = s.matrix + chunk.item * DIMS * (DIMS + 1);
    for (int64_t c = 0; c < s.C; ++c) {
      const int64_t plane = chunk.item * s.C + c;
      const double scale = integer_scale(call.largest[plane], bits);
      const In* grad = static_cast<const In*>(call.grad) + plane * grid.out_numel;
      const auto add = [&](int64_t at, T value) {
        if (value - value == 0) {
          atomicAdd(reinterpret_cast<unsigned long long*>(call.sums) + plane * grid.numel + at,
                    static_cast<unsigned long long>(llrint(static_cast<double>(value) * scale)));
        } else {  // not an integer: the voxel's gradient becomes NaN, in any order of writes
          static_cast<In*>(call.grad_images)[plane * grid.numel + at] = from_real<In>(T{NAN});
        }
      };
      for (int64_t e = chunk.begin + threadIdx.x; e < chunk.end; e += kThreads) {
        const Position<DIMS> position(grid, matrix, e);
        const T g = to_real<T>(grad[e]);
        if (s.mode != Mode::kLinear) {
          const int64_t at = nearest(grid, position, s.mode, s.border);
          if (at >= 0) add(at, g);
          continue;
        }
        const Taps<T, DIMS> taps(grid, position, s.border);
#pragma unroll
        for (int t = 0; t < taps.count; ++t) {
          if (taps.counts >> t & 1) add(taps.index(t), taps.weight(t) * g);
        }
      }
    }
  }
}

template <class In>
__global__ void __launch_bounds__(kThreads)
    finish_scatter_gradient(AffineSampleBackward call, Chunks chunks, int bits) {
  using T = Acc<In>;
  In* to = static_cast<In*>(call.grad_images);
  for (int64_t n = blockIdx.x; n < chunks.total; n += gridDim.x) {
    const Chunk chunk(chunks, n);
    const double step = 1 / integer_scale(call.largest[chunk.item], bits);
    for (int64_t e = chunk.begin + threadIdx.x; e < chunk.end; e += kThreads) {
      const int64_t at = chunk.item * chunks.count + e;
      const T sum = static_cast<T>(static_cast<double>(call.sums[at]) * step);
      to[at] = from_real<In>(to_real<T>(to[at]) + sum);
    }
  }
}

template <class In, int DIMS>
__global__ void __launch_bounds__(kThreads)
    sum_matrix_gradient(AffineSampleBackward call, Grid<DIMS> grid, Chunks chunks) {
  using T = Acc<In>;
  constexpr int entries = DIMS * (DIMS + 1), padded = DIMS == 2 ? 8 : 16;
  const Sampling& s = call.sampling;
  for (int64_t n = blockIdx.x; n < chunks.total; n += gridDim.x) {
    const Chunk chunk(chunks, n);
    const double* matrix = s.matrix + chunk.item * entries;
    double sums[padded] = {};
    for (int64_t e = chunk.begin + threadIdx.x; e < chunk.end; e += kThreads) {
      const Position<DIMS> position(grid, matrix, e);
      const Taps<T, DIMS> taps(grid, position, s.border);
      if (taps.outside) continue;
      T along[DIMS] = {};
      const In* image = static_cast<const In*>(call.images) + chunk.item * s.C * grid.numel;
      const In* grad = static_cast<const In*>(call.grad) + chunk.item * s.C * grid.out_numel + e;
      for (int64_t c = 0; c < s.C; ++c, image += grid.numel, grad += grid.out_numel) {
        T slope[DIMS] = {};
#pragma unroll
        for (int t = 0; t < taps.count; ++t) {
          const T voxel = taps.voxel(image, t);
#pragma unroll
          for (int a = 0; a < DIMS; ++a) {
            T product = (t >> a & 1) ? voxel : -voxel;
#pragma unroll
            for (int d = 0; d < DIMS; ++d) product *= d == a ? T{1} : taps.factor(t, d);
            slope[a] += product;
          }
        }
#pragma unroll
        for (int a = 0; a < DIMS; ++a) along[a] += to_real<T>(*grad) * slope[a];
      }
#pragma unroll
      for (int a = 0; a < DIMS; ++a) {
        const double g = taps.differentiable[a] ? static_cast<double>(along[a]) : 0.0;
        double* row = sums + a * (DIMS + 1);
#pragma unroll
        for (int d = 0; d < DIMS; ++d) row[d] += g * position.out[d];
        row[DIMS] += g;
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
  const Chunks chunks(s.B, grid.out_numel, kChunk);
  if (chunks.total * s.C == 0) return;
  const dim3 blocks = blocks_for(chunks.total), threads(kThreads);
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
      CMRFAST_LAUNCH((sample_nearest<Word, DIMS>), blocks, threads, stream, call, grid, chunks,
                     fill);
    });
    return;
  }
  with_floating(s.dtype, [&](auto zero) {
    CMRFAST_LAUNCH((sample_linear<decltype(zero), DIMS>), blocks, threads, stream, call, grid,
                   chunks);
  });
}

template <class In, int DIMS>
void launch_backward(const AffineSampleBackward& call, void* stream) {
  const Sampling& s = call.sampling;
  const Grid<DIMS> grid(s);
  const dim3 threads(kThreads);
  const bool any = s.B * s.C * grid.out_numel > 0 && grid.numel > 0;
  if (any && call.grad_images != nullptr) {
    const int bits = bits_of(grid.out_numel);
    const Chunks planes(s.B * s.C, grid.out_numel, 16 * kThreads);
    const Chunks out(s.B, grid.out_numel, kChunk);
    const Chunks in(s.B * s.C, grid.numel, kChunk);
    CMRFAST_LAUNCH(find_max<In>, blocks_for(planes.total), threads, stream,
                   static_cast<const In*>(call.grad), planes, call.largest);
    CMRFAST_LAUNCH((scatter_gradient<In, DIMS>), blocks_for(out.total), threads, stream, call, grid,
                   out, bits);
    CMRFAST_LAUNCH(finish_scatter_gradient<In>, blocks_for(in.total), threads, stream, call, in,
                   bits);
  }
  const Chunks chunks(s.B, grid.out_numel, kMatrixChunk);
  if (call.grad_matrix != nullptr && chunks.total > 0) {
    CMRFAST_LAUNCH((sum_matrix_gradient<In, DIMS>), blocks_for(chunks.total), threads, stream, call,
                   grid, chunks);
    launch_sum_partials(call.partial, s.B, chunks.each.value, DIMS * (DIMS + 1), 1.0,
                        call.grad_matrix, stream);
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

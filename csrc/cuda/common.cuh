// What CUDA kernels share: launches, grids, fast division, sums in a fixed order.
//
// Includes no torch header: nvcc compiles kernels and launchers on raw pointers, and the same
// source runs on the CPU through on_host.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define CMRFAST_LAUNCH(kernel, grid, block, stream, ...) \
  kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#else
#include "on_host.h"
#endif

#include "launchers.h"

namespace cmrfast::cuda {

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kThreads = 256;

// The error of the last launch, or nullptr. Does not synchronise.
inline const char* launch_error() {
#ifdef __CUDACC__
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#else
  return nullptr;
#endif
}

// One block per item, up to the hardware's limit; kernels stride over the rest.
inline dim3 blocks_for(int64_t count) {
  constexpr int64_t max = 0x7fffffff;
  return dim3(static_cast<unsigned>(count < max ? count : max));
}

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

__host__ __device__ inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The same number, which the compiler then does not take apart to compute it again in a loop.
__device__ inline uint64_t in_register(uint64_t number) {
#ifdef __CUDACC__
  asm("" : "+l"(number));
#endif
  return number;
}

// Addresses in global memory as numbers, for those that may be out of range where nothing is read.
__device__ inline uint64_t address_of(const void* pointer) {
#ifdef __CUDACC__
  return __cvta_generic_to_global(pointer);
#else
  return reinterpret_cast<uint64_t>(pointer);
#endif
}
template <class T>
__device__ T* at_address(uint64_t address) {
#ifdef __CUDACC__
  return static_cast<T*>(__cvta_global_to_generic(address));
#else
  return reinterpret_cast<T*>(address);
#endif
}

// in_register of a pointer to global memory.
template <class T>
__device__ T* in_register(T* pointer) {
  return at_address<T>(in_register(address_of(pointer)));
}

// To two units in the last place.
__device__ inline float reciprocal(float x) {
#ifdef __CUDACC__
  return __fdividef(1, x);
#else
  return 1 / x;
#endif
}

// Exact division by a number known at launch, at most 2^62, as a multiplication and a shift.
struct Divisor {
  int64_t value;
  uint64_t magic;
  int shift = 0;

  explicit Divisor(int64_t divisor) : value(divisor < 1 ? 1 : divisor) {
    while (shift < 62 && (int64_t{1} << shift) < value) ++shift;
    const auto excess = static_cast<uint64_t>((int64_t{1} << shift) - value);
    magic = static_cast<uint64_t>((static_cast<unsigned __int128>(excess) << 64) / value + 1);
  }

  __device__ int64_t divide(int64_t n) const {  // n >= 0
    const auto u = static_cast<uint64_t>(n);
    return static_cast<int64_t>((__umul64hi(u, magic) + u) >> shift);
  }
};

// The same for numbers below 2^31, in three instructions.
struct SmallDivisor {
  unsigned magic;
  int shift = 0;

  explicit SmallDivisor(int64_t divisor) {
    while ((int64_t{1} << shift) < divisor) ++shift;
    const auto excess = static_cast<uint64_t>((int64_t{1} << shift) - divisor);
    magic = static_cast<unsigned>((excess << 32) / static_cast<uint64_t>(divisor) + 1);
  }

  __device__ int divide(int n) const {
    return static_cast<int>(
        (__umulhi(static_cast<unsigned>(n), magic) + static_cast<unsigned>(n)) >> shift);
  }
};

// Items of `count` elements each, split into chunks that never span two items, so that a block
// loads what depends on the item only once. Chunks are numbered across items.
struct Chunks {
  int64_t count, length, total;
  Divisor each;

  Chunks(int64_t items, int64_t count, int64_t length)
      : count(count),
        length(length),
        total(items * ceil_div(count, length)),
        each(ceil_div(count, length)) {}
};

// One of them: elements [begin, end) of an item.
struct Chunk {
  int64_t item, number, begin, end;

  __device__ Chunk(const Chunks& all, int64_t at)
      : item(all.each.divide(at)),
        number(at - item * all.each.value),
        begin(number * all.length),
        end(smaller(all.count, begin + all.length)) {}
};

// Writes aligned values with one store.
template <int N, class T>
__device__ void store(const T (&values)[N], T* to) {
  using Packed = std::conditional_t<N * sizeof(T) == 16, uint4, uint2>;
  static_assert(sizeof(Packed) == N * sizeof(T));
  Packed packed;
  memcpy(&packed, values, sizeof(packed));
  *reinterpret_cast<Packed*>(to) = packed;
}

__device__ inline int lane_of_warp() { return static_cast<int>(threadIdx.x & 31); }

// The sum over a warp, in every lane, in a fixed order.
template <class T>
__device__ T warp_sum(T value) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(kWholeWarp, value, step);
  return value;
}

// N sums over a warp; lane l returns the sum of values[l % N]. Each step halves the values that a
// lane holds, so N sums take N shuffles rather than 5 N.
template <int HALF, int N, class T>
__device__ void fold_halves(T (&values)[N]) {
  if constexpr (HALF > 0) {
    const bool upper = lane_of_warp() & HALF;
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
      const T sent = upper ? values[i] : values[i + HALF];
      const T kept = upper ? values[i + HALF] : values[i];
      values[i] = kept + __shfl_xor_sync(kWholeWarp, sent, HALF);
    }
    fold_halves<HALF / 2>(values);
  }
}

template <int N, class T>
__device__ T warp_sums(T (&values)[N]) {
  static_assert(N > 0 && N <= 32 && (N & (N - 1)) == 0);
  fold_halves<N / 2>(values);
#pragma unroll
  for (int step = N; step < 32; step <<= 1) {
    values[0] += __shfl_xor_sync(kWholeWarp, values[0], step);
  }
  return values[0];
}

// N sums over a block of kThreads threads, warps in order and in double; thread t < N returns the
// sum of values[t]. All threads of the block must call it.
template <int N, class T>
__device__ double block_sums(T (&values)[N]) {
  constexpr int warps = kThreads / 32;
  __shared__ double part[warps][N];
  const T sum_of_warp = warp_sums(values);
  __syncthreads();  // the sums of an earlier call may still be read
  if (lane_of_warp() < N) part[threadIdx.x / 32][lane_of_warp()] = static_cast<double>(sum_of_warp);
  __syncthreads();
  double sum = 0;
  if (threadIdx.x < N) {
    for (int w = 0; w < warps; ++w) sum += part[w][threadIdx.x];
  }
  return sum;
}

// The second stage: out[item, w] = scale * sum over s of partial[item, s, w]. One warp per
// number, lanes in steps of 32 and then as a tree: a fixed order.
template <class T>
__global__ void sum_partials(const double* partial, int64_t items, int64_t chunks, int width,
                             double scale, T* out) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t o = blockIdx.x * static_cast<int64_t>(kThreads / 32) + threadIdx.x / 32;
       o < items * width; o += step) {
    const int64_t item = o / width, w = o % width;
    double sum = 0;
    for (int64_t s = lane_of_warp(); s < chunks; s += 32) {
      sum += partial[(item * chunks + s) * width + w];
    }
    sum = warp_sum(sum);
    if (lane_of_warp() == 0) out[o] = static_cast<T>(scale * sum);
  }
}

template <class T>
void launch_sum_partials(const double* partial, int64_t items, int64_t chunks, int width,
                         double scale, T* out, void* stream) {
  CMRFAST_LAUNCH(sum_partials<T>, blocks_for(ceil_div(items * width, kThreads / 32)),
                 dim3(kThreads), stream, partial, items, chunks, width, scale, out);
}

}  // namespace cmrfast::cuda

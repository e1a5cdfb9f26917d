// One axis of a volume times a banded matrix: smoothing before a volume is downsampled.
//
// A thread computes one output from the part of a line with nonzero weights, in order; neighbouring
// threads write neighbouring outputs. Minimum traffic: values and output once; the overlap of the
// bands comes from the caches.
#include "common.cuh"

namespace cmrfast::cuda {
namespace {

// The range of nonzero weights of each row, one warp per row, and the weights in the values' dtype.
template <class T>
__global__ void __launch_bounds__(kThreads) find_nonzero(ContractAxis call) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t x = blockIdx.x * static_cast<int64_t>(kThreads / 32) + threadIdx.x / 32; x < call.M;
       x += step) {
    const double* row = call.weights + x * call.n;
    int64_t begin = call.n, end = 0;
    for (int64_t y = lane_of_warp(); y < call.n; y += 32) {
      static_cast<T*>(call.rounded)[x * call.n + y] = static_cast<T>(row[y]);
      if (row[y] == 0) continue;
      begin = smaller(begin, y);
      end = y + 1;
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes >>= 1) {
      const int64_t other = __shfl_xor_sync(kWholeWarp, end, lanes);
      begin = smaller(begin, __shfl_xor_sync(kWholeWarp, begin, lanes));
      end = other > end ? other : end;
    }
    if (lane_of_warp() == 0) {
      call.nonzero[2 * x] = begin;
      call.nonzero[2 * x + 1] = end;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    contract_axis(ContractAxis call, Divisor inner, Divisor rows) {
  const T* values = static_cast<const T*>(call.values);
  const int64_t total = call.O * call.M * call.I;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t e = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; e < total;
       e += step) {
    const int64_t line = inner.divide(e), i = e - line * call.I;
    const int64_t o = rows.divide(line), x = line - o * call.M;
    const int64_t begin = call.nonzero[2 * x], end = call.nonzero[2 * x + 1];
    const T* weight = static_cast<const T*>(call.rounded) + x * call.n;
    const T* from = values + (o * call.n + begin) * call.I + i;
    T sum = 0;
    for (int64_t y = begin; y < end; ++y, from += call.I) sum += weight[y] * *from;
    static_cast<T*>(call.out)[e] = sum;
  }
}

template <class T>
void launch(const ContractAxis& call, void* stream) {
  CMRFAST_LAUNCH(find_nonzero<T>, blocks_for(ceil_div(call.M, kThreads / 32)), dim3(kThreads),
                 stream, call);
  CMRFAST_LAUNCH(contract_axis<T>, blocks_for(ceil_div(call.O * call.M * call.I, kThreads)),
                 dim3(kThreads), stream, call, Divisor(call.I), Divisor(call.M));
}

}  // namespace
}  // namespace cmrfast::cuda

using namespace cmrfast::cuda;

const char* cmrfast_contract_axis(const ContractAxis& call, void* stream) {
  if (call.O * call.M * call.I == 0) return nullptr;
  call.dtype == Dtype::kFloat64 ? launch<double>(call, stream) : launch<float>(call, stream);
  return launch_error();
}

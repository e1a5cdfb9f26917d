// Faults planted on purpose, to show that running kernels on the CPU would tell.
#include <string>
#include <vector>

#include "common.cuh"

namespace {

__global__ void write_past_the_end(float* out) { out[threadIdx.x + 1] = 1; }

__global__ void part_of_a_barrier(float* out) {
  if (threadIdx.x < 7) __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void last_block_wins(float* out) { out[0] = static_cast<float>(blockIdx.x); }

__global__ void sum_in_order(double* out) {
  double values[8];
  for (int i = 0; i < 8; ++i) values[i] = i + 8.0 * threadIdx.x;
  const double sum = cmrfast::cuda::block_sums(values);
  if (threadIdx.x < 8) out[threadIdx.x] = sum;
}

__global__ void divide(cmrfast::cuda::Divisor by, const int64_t* n, int64_t* out) {
  out[threadIdx.x] = by.divide(n[threadIdx.x]);
}

}  // namespace

int main(int, char** arguments) {
  const std::string fault = arguments[1];
  std::vector<float> out(64);
  if (fault == "overflow") CMRFAST_LAUNCH(write_past_the_end, 1, 64, nullptr, out.data());
  if (fault == "barrier") CMRFAST_LAUNCH(part_of_a_barrier, 1, 64, nullptr, out.data());
  if (fault == "order") {
    CMRFAST_LAUNCH(last_block_wins, 5, 1, nullptr, out.data());
    std::printf("%g\n", out[0]);
  }
  if (fault == "sums") {
    std::vector<double> sums(8);
    CMRFAST_LAUNCH(sum_in_order, 1, 256, nullptr, sums.data());
    for (const double sum : sums) std::printf("%g ", sum);
  }
  if (fault == "divide") {
    const int64_t most = INT64_MAX;
    const std::vector<int64_t> n = {0,
                                    1,
                                    2,
                                    3,
                                    6,
                                    7,
                                    8,
                                    1 << 20,
                                    (1ll << 31) - 1,
                                    1ll << 31,
                                    (1ll << 32) + 1,
                                    999999999999999999,
                                    1ll << 62,
                                    most - 1,
                                    most};
    for (const int64_t d : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{7}, int64_t{56},
                            int64_t{641}, (int64_t{1} << 31) - 1, (int64_t{1} << 31) + 1,
                            int64_t{6700417} * 641, (int64_t{1} << 61) + 1, int64_t{1} << 62}) {
      std::vector<int64_t> got(n.size());
      CMRFAST_LAUNCH(divide, 1, static_cast<unsigned>(n.size()), nullptr, cmrfast::cuda::Divisor(d),
                     n.data(), got.data());
      for (size_t i = 0; i < n.size(); ++i) {
        if (got[i] != n[i] / d) std::printf("%ld / %ld gave %ld\n", n[i], d, got[i]);
      }
    }
  }
}

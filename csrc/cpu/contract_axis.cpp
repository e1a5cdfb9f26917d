// One axis of a volume times a banded matrix: smoothing before a volume is downsampled.
//
// A task computes one line of the output from the lines with nonzero weights, in order, so that the
// result does not depend on the number of threads. Minimum traffic: values and output once.
#include "common.h"

namespace cmrfast::cpu {
namespace {

// out[o, x, :] = sum of weights[x, y] * values[o, y, :]; skips the zeros at both ends of a row.
template <class T>
void contract(const T* values, const double* weights, int64_t O, int64_t n, int64_t M, int64_t I,
              T* out) {
  for_each_task(O * M, [&](int64_t task) {
    const int64_t o = task / M, x = task % M;
    const double* w = weights + x * n;
    int64_t begin = 0, end = n;
    while (begin < end && w[begin] == 0) ++begin;
    while (begin < end && w[end - 1] == 0) --end;
    T* sum = out + task * I;
    std::fill_n(sum, I, T{0});
    for (int64_t y = begin; y < end; ++y) {
      const T* from = values + (o * n + y) * I;
      const T weight = static_cast<T>(w[y]);
#pragma omp simd
      for (int64_t i = 0; i < I; ++i) sum[i] += weight * from[i];
    }
  });
}

Tensor contract_axis(const Tensor& values_any, const Tensor& weights_any) {
  const Tensor values = torch::stable::contiguous(values_any);
  const Tensor weights = torch::stable::contiguous(weights_any);
  STD_TORCH_CHECK(values.dim() == 3 && weights.dim() == 2 && weights.size(1) == values.size(1) &&
                      weights.scalar_type() == ScalarType::Double,
                  "contract_axis: values must be (O, n, I), weights (M, n) float64");
  const int64_t O = values.size(0), n = values.size(1), I = values.size(2), M = weights.size(0);
  Tensor out = fresh(values, {O, M, I}, values.scalar_type());
  with_real("contract_axis: values", values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    contract(read<T>(values), read<double>(weights), O, n, M, I, write<T>(out));
  });
  return out;
}

}  // namespace
}  // namespace cmrfast::cpu

STABLE_TORCH_LIBRARY_IMPL(cmrfast, CPU, m) {
  m.impl("contract_axis", TORCH_BOX(&cmrfast::cpu::contract_axis));
}

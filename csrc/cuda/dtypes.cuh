// Voxels of any real dtype: read as a number, written rounded and saturated.
#pragma once

#include <limits>
#include <type_traits>

#include "common.cuh"

namespace cmrfast::cuda {

struct Bool {
  uint8_t value;
};

template <class T>
constexpr bool is_floating = std::is_same_v<T, float> || std::is_same_v<T, double> ||
                             std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>;

// The dtype that values are computed and accumulated in: float for half precision.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Integers of 32 bits or more, and doubles, are exact only in double.
template <class T>
constexpr bool needs_double = std::is_same_v<T, double> || (!is_floating<T> && sizeof(T) > 2);

template <class Real, class T>
__device__ Real to_real(T value) {
  if constexpr (std::is_same_v<T, __half>) {
    return static_cast<Real>(__half2float(value));
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return static_cast<Real>(__bfloat162float(value));
  } else if constexpr (std::is_same_v<T, Bool>) {
    return static_cast<Real>(value.value);
  } else {
    return static_cast<Real>(value);
  }
}

// Integers round half to even and saturate, NaN becomes 0; a bool is whether
// the rounded value is at least 1.
template <class To, class Real>
__host__ __device__ To from_real(Real value) {
  if constexpr (std::is_same_v<To, __half>) {
    return __float2half_rn(static_cast<float>(value));
  } else if constexpr (std::is_same_v<To, __nv_bfloat16>) {
    return __float2bfloat16_rn(static_cast<float>(value));
  } else if constexpr (std::is_same_v<To, Bool>) {
    return {static_cast<uint8_t>(value > static_cast<Real>(0.5))};
  } else if constexpr (is_floating<To>) {
    return static_cast<To>(value);
  } else {
    constexpr To min = std::numeric_limits<To>::min(), max = std::numeric_limits<To>::max();
    const Real rounded = nearbyint(value);
    if (!(rounded >= static_cast<Real>(min))) return rounded < 0 ? min : To{0};
    return rounded >= static_cast<Real>(max) ? max : static_cast<To>(rounded);
  }
}

template <class T>
constexpr Dtype kDtypeOf = [] {
  if constexpr (std::is_same_v<T, Bool>) return Dtype::kBool;
  if constexpr (std::is_same_v<T, uint8_t>) return Dtype::kUint8;
  if constexpr (std::is_same_v<T, int8_t>) return Dtype::kInt8;
  if constexpr (std::is_same_v<T, int16_t>) return Dtype::kInt16;
  if constexpr (std::is_same_v<T, int32_t>) return Dtype::kInt32;
  if constexpr (std::is_same_v<T, int64_t>) return Dtype::kInt64;
  if constexpr (std::is_same_v<T, uint16_t>) return Dtype::kUint16;
  if constexpr (std::is_same_v<T, uint32_t>) return Dtype::kUint32;
  if constexpr (std::is_same_v<T, uint64_t>) return Dtype::kUint64;
  if constexpr (std::is_same_v<T, __half>) return Dtype::kFloat16;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return Dtype::kBFloat16;
  if constexpr (std::is_same_v<T, float>) return Dtype::kFloat32;
  if constexpr (std::is_same_v<T, double>) return Dtype::kFloat64;
}();

// Calls body(T{}) with the type of a dtype, the first of the types if it is none of them. Launchers
// choose a kernel with it, kernels how to read a tensor.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class First, class... Others, class Body>
__host__ __device__ void with_one_of(Dtype dtype, const Body& body) {
  const bool other = (... || (dtype == kDtypeOf<Others> && (body(Others{}), true)));
  if (!other) body(First{});
}

#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Body>
__host__ __device__ void with_dtype(Dtype dtype, const Body& body) {
  with_one_of<Bool, uint8_t, int8_t, int16_t, int32_t, int64_t, uint16_t, uint32_t, uint64_t,
              __half, __nv_bfloat16, float, double>(dtype, body);
}

template <class Body>
void with_floating(Dtype dtype, const Body& body) {
  with_one_of<float, __half, __nv_bfloat16, double>(dtype, body);
}

// float32 or float64, what ops compute in.
template <class Body>
void with_real(Dtype dtype, const Body& body) {
  with_one_of<float, double>(dtype, body);
}

}  // namespace cmrfast::cuda

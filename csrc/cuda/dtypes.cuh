// Voxels of any real dtype: read as a number, written back rounded and saturated.
#pragma once

#include <limits>
#include <type_traits>

#include "common.cuh"

namespace cmrfast::cuda {

struct Bool {
  uint8_t value;
};

template <class T>
constexpr bool is_real = std::is_same_v<T, float> || std::is_same_v<T, double> ||
                         std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>;

// What values are computed and summed in: halves in float.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Integers of 32 bits and more, and doubles, keep their values only in double.
template <class T>
constexpr bool is_wide = std::is_same_v<T, double> || (!is_real<T> && sizeof(T) > 2);

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

// Integers round half to even and saturate, NaN becomes 0; bool is what rounds to 1 or more.
template <class To, class Real>
__host__ __device__ To from_real(Real value) {
  if constexpr (std::is_same_v<To, __half>) {
    return __float2half_rn(static_cast<float>(value));
  } else if constexpr (std::is_same_v<To, __nv_bfloat16>) {
    return __float2bfloat16_rn(static_cast<float>(value));
  } else if constexpr (std::is_same_v<To, Bool>) {
    return {static_cast<uint8_t>(value > static_cast<Real>(0.5))};
  } else if constexpr (is_real<To>) {
    return static_cast<To>(value);
  } else {
    constexpr To least = std::numeric_limits<To>::min(), most = std::numeric_limits<To>::max();
    const Real rounded = nearbyint(value);
    if (!(rounded >= static_cast<Real>(least))) return rounded < 0 ? least : To{0};
    return rounded >= static_cast<Real>(most) ? most : static_cast<To>(rounded);
  }
}

// Calls body(T{}) with the type of a dtype: a launcher chooses its kernel so, a kernel its source.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Body>
__host__ __device__ void with_dtype(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kBool:
      return body(Bool{});
    case Dtype::kUint8:
      return body(uint8_t{});
    case Dtype::kInt8:
      return body(int8_t{});
    case Dtype::kInt16:
      return body(int16_t{});
    case Dtype::kInt32:
      return body(int32_t{});
    case Dtype::kInt64:
      return body(int64_t{});
    case Dtype::kFloat16:
      return body(__half{});
    case Dtype::kBFloat16:
      return body(__nv_bfloat16{});
    case Dtype::kFloat32:
      return body(float{});
    case Dtype::kFloat64:
      return body(double{});
  }
}

// The same for the four dtypes that ops compute with, for launchers alone.
template <class Body>
void with_floating(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kFloat16:
      return body(__half{});
    case Dtype::kBFloat16:
      return body(__nv_bfloat16{});
    case Dtype::kFloat64:
      return body(double{});
    default:
      return body(float{});
  }
}

}  // namespace cmrfast::cuda

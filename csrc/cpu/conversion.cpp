// Conversion in two passes over a block in cache, from the voxels to real numbers and from these to
// voxels, so that functions are compiled for each dtype and not for each pair of dtypes.
#include "conversion.h"

#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>

#include "half.h"

namespace cmrfast::cpu {
namespace {

constexpr int64_t kBlock = 512;  // voxels

struct Bool {
  uint8_t value;
};

template <class Real, class From>
Real real(From value) {
  if constexpr (std::is_same_v<From, Bool>) {
    return value.value;
  } else if constexpr (std::is_same_v<From, Half> || std::is_same_v<From, BFloat16>) {
    return to_real(value);
  } else {
    return static_cast<Real>(value);
  }
}

// Integers saturate, NaN becomes 0; a bool is whether the rounded value is at least 1.
template <class To, class Real>
To cast(Real value) {
  if constexpr (std::is_same_v<To, Bool>) {
    return {static_cast<uint8_t>(std::nearbyint(value) >= 1)};
  } else if constexpr (is_floating<To>) {
    return static_cast<To>(value);
  } else {
    using Limits = std::numeric_limits<To>;
    const Real rounded = std::nearbyint(value);
    if (!(rounded >= static_cast<Real>(Limits::min()))) {
      return rounded < 0 ? Limits::min() : To{0};
    }
    return rounded >= static_cast<Real>(Limits::max()) ? Limits::max() : static_cast<To>(rounded);
  }
}

template <class From, class Real>
void load_run(const void* source, void* reals, int64_t n, int64_t step, double shift,
              double scale) {
  const From* from = static_cast<const From*>(source);
  Real* to = static_cast<Real*>(reals);
  const Real minus = static_cast<Real>(shift), times = static_cast<Real>(scale);
  if (step > 0) {
    for (int64_t k = 0; k < n; ++k) to[k] = (real<Real>(from[k]) - minus) * times;
  } else {
    for (int64_t k = 0; k < n; ++k) to[k] = (real<Real>(from[-k]) - minus) * times;
  }
}

template <class Real, class To>
void store_run(const void* reals, void* target, int64_t n) {
  const Real* from = static_cast<const Real*>(reals);
  To* to = static_cast<To*>(target);
  for (int64_t k = 0; k < n; ++k) to[k] = cast<To>(from[k]);
}

template <class Bits>
void copy_run(const void* source, void* target, int64_t n, int64_t step) {
  const Bits* from = static_cast<const Bits*>(source);
  Bits* to = static_cast<Bits*>(target);
  if (step > 0) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(Bits));
  } else {
    for (int64_t k = 0; k < n; ++k) to[k] = from[-k];
  }
}

template <class To>
void fill_run(void* target, int64_t n, double value) {
  std::fill_n(static_cast<To*>(target), n, cast<To>(value));
}

template <class T>
using BitsOf =
    std::conditional_t<sizeof(T) == 1, uint8_t,
                       std::conditional_t<sizeof(T) == 2, uint16_t,
                                          std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>>;

template <class Body>
void with_dtype(ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Bool:
      return body(Bool{});
    case ScalarType::Byte:
      return body(uint8_t{});
    case ScalarType::UInt16:
      return body(uint16_t{});
    case ScalarType::UInt32:
      return body(uint32_t{});
    case ScalarType::UInt64:
      return body(uint64_t{});
    case ScalarType::Char:
      return body(int8_t{});
    case ScalarType::Short:
      return body(int16_t{});
    case ScalarType::Int:
      return body(int32_t{});
    case ScalarType::Long:
      return body(int64_t{});
    case ScalarType::Half:
      return body(Half{});
    case ScalarType::BFloat16:
      return body(BFloat16{});
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    default:
      STD_TORCH_CHECK(false, "patches: no kernel for this dtype");
  }
}

}  // namespace

Conversion::Conversion(ScalarType from, ScalarType to, double filling)
    : from_bytes(0),
      to_bytes(0),
      filling_(filling),
      in_double_(false),
      store_(nullptr),
      copy_(nullptr) {
  with_dtype(from, [&](auto source) {
    using From = decltype(source);
    from_bytes = sizeof(From);
    in_double_ = needs_double<From>;
  });
  with_dtype(to, [&](auto target) {
    using To = decltype(target);
    to_bytes = sizeof(To);
    fill_ = &fill_run<To>;
    if (from == to) copy_ = &copy_run<BitsOf<To>>;
    in_double_ = in_double_ || needs_double<To>;
    if constexpr (!std::is_same_v<To, double>) {
      if (in_double_) store_ = &store_run<double, To>;
    }
    if constexpr (!needs_double<To> && !std::is_same_v<To, float>) {
      if (!in_double_) store_ = &store_run<float, To>;
    }
  });
  with_dtype(from, [&](auto source) {
    using From = decltype(source);
    load_ = &load_run<From, double>;
    if constexpr (!needs_double<From>) {
      if (!in_double_) load_ = &load_run<From, float>;
    }
  });
}

void Conversion::convert(const void* from, void* to, int64_t n, int64_t step, double shift,
                         double scale) const {
  if (copy_ != nullptr && shift == 0 && scale == 1) return copy_(from, to, n, step);
  if (store_ == nullptr) return load_(from, to, n, step, shift, scale);
  alignas(64) std::byte reals[kBlock * sizeof(double)];  // or as many floats
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = std::min(kBlock, n - begin);
    load_(static_cast<const char*>(from) + step * begin * from_bytes, reals, count, step, shift,
          scale);
    store_(reals, static_cast<char*>(to) + begin * to_bytes, count);
  }
}

}  // namespace cmrfast::cpu

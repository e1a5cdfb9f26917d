// Values of half precision as floats, without library calls, so that loops over them vectorise.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <bit>
#include <cstdint>

namespace cmrfast::cpu {

inline float to_real(float x) { return x; }
inline double to_real(double x) { return x; }

inline float to_real(torch::headeronly::BFloat16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.x) << 16);
}

inline float to_real(torch::headeronly::Half x) {
  const uint32_t bits = x.x, shifted = (bits & 0x7fff) << 13;
  constexpr float rebias = 0x1p112f;  // exponents count from -15 in half, from -127 in float
  const uint32_t magnitude = std::bit_cast<uint32_t>(std::bit_cast<float>(shifted) * rebias);
  const uint32_t special = shifted >= 0x0f800000 ? 0x7f800000 : 0;  // infinite or NaN
  return std::bit_cast<float>(magnitude | special | (bits & 0x8000) << 16);
}

}  // namespace cmrfast::cpu

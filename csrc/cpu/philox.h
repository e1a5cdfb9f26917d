// Random numbers as a function of a key and a counter: Philox4x32-10 (Salmon et al. 2011,
// doi.org/10.1145/2063384.2063405), and normal numbers by Box and Muller's transform.
#pragma once

#include <cmath>
#include <cstdint>

#include "simd_math.h"

namespace cmrfast::cpu {

// The numbers of one channel of one sample; the counter's first word is the group of four voxels.
struct Philox {
  uint32_t key[2], channel, sample[2];

  Philox(uint64_t seed, uint32_t channel, uint64_t sample)
      : key{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
        channel(channel),
        sample{static_cast<uint32_t>(sample), static_cast<uint32_t>(sample >> 32)} {}

  struct Words {
    uint32_t a, b, c, d;
  };

  Words words(uint32_t group) const {
    uint32_t a = group, b = channel, c = sample[0], d = sample[1], k0 = key[0], k1 = key[1];
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const uint64_t p = uint64_t{0xD2511F53} * a, q = uint64_t{0xCD9E8D57} * c;
      a = static_cast<uint32_t>(q >> 32) ^ b ^ k0;
      b = static_cast<uint32_t>(q);
      c = static_cast<uint32_t>(p >> 32) ^ d ^ k1;
      d = static_cast<uint32_t>(p);
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    return {a, b, c, d};
  }
};

// Standard normal numbers of a block of voxels.
template <class T>
struct NormalBlock {
  static constexpr int64_t size = 256, groups = size / 4;
  T value[size];

  void draw(const Philox& philox, int64_t group) {
    T parts[4][groups];
    const auto first = static_cast<uint32_t>(group);
#pragma omp simd
    for (int64_t g = 0; g < groups; ++g) {
      const Philox::Words x = philox.words(first + static_cast<uint32_t>(g));
      const auto one = pair(x.a, x.b), other = pair(x.c, x.d);
      parts[0][g] = one.cosine;
      parts[1][g] = one.sine;
      parts[2][g] = other.cosine;
      parts[3][g] = other.sine;
    }
#pragma omp simd
    for (int64_t g = 0; g < groups; ++g) {
      value[4 * g] = parts[0][g];
      value[4 * g + 1] = parts[1][g];
      value[4 * g + 2] = parts[2][g];
      value[4 * g + 3] = parts[3][g];
    }
  }

 private:
  static simd::SineCosine<T> pair(uint32_t first, uint32_t second) {
    const T uniform = static_cast<T>(first) * T{0x1p-32} + T{0x1p-33};  // above 0
    const T radius = std::sqrt(T{-2} * simd::log_positive(uniform));
    const auto angle = simd::sine_cosine<T>(second);
    return {radius * angle.sine, radius * angle.cosine};
  }
};

}  // namespace cmrfast::cpu

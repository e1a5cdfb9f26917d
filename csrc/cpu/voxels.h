// Voxels of any dtype, read as the real numbers that they are interpolated in, four at a time.
#pragma once

#include <bit>

#include "crop.h"
#include "taps.h"

namespace cmrfast::cpu {

// Whether two neighbours of this dtype are read as one word of at most 32 bits.
template <class From>
constexpr bool in_words =
    std::endian::native == std::endian::little && sizeof(From) <= 2 && !std::is_same_v<From, Half>;

template <class Real, class From>
Four<Real> converted(From a, From b, From c, From d) {
  return Four<Real>{static_cast<Real>(a), static_cast<Real>(b), static_cast<Real>(c),
                    static_cast<Real>(d)};
}

// The four voxels from `at` on.
template <class Real, class From>
Four<Real> four_voxels(const From* at) {
  if constexpr (std::is_arithmetic_v<From>) {
    typedef From Stored __attribute__((vector_size(4 * sizeof(From))));
    return __builtin_convertvector(load<Stored>(at), Four<Real>);
  } else {
    return converted<Real>(at[0], at[1], at[2], at[3]);
  }
}

// The two neighbours along the last axis of four positions.
template <class Real, class From>
struct Neighbours {
  Four<Real> left, right;

  Neighbours(const From* image, const int64_t* index) {
    if constexpr (in_words<From>) {
      constexpr int bits = 8 * sizeof(From);
      using Word = std::conditional_t<sizeof(From) == 1, uint16_t, uint32_t>;
      typedef uint32_t Words __attribute__((vector_size(16)));
      const Words words = {load<Word>(image + index[0]), load<Word>(image + index[1]),
                           load<Word>(image + index[2]), load<Word>(image + index[3])};
      if constexpr (std::is_same_v<From, BFloat16>) {
        left = upcast(words << 16);
        right = upcast(words & 0xffff0000u);
      } else {  // shifted up and down again, with or without the sign
        using Integer = std::conditional_t<std::is_signed_v<From>, int32_t, uint32_t>;
        typedef Integer Integers __attribute__((vector_size(16)));
        const auto up = reinterpret_cast<Integers>(words << (32 - bits));
        const auto down = reinterpret_cast<Integers>(words << (32 - 2 * bits));
        left = signed_to_real(up >> (32 - bits));
        right = signed_to_real(down >> (32 - bits));
      }
    } else if constexpr (std::is_arithmetic_v<From>) {
      const Sides<From> sides(image, index);
      left = __builtin_convertvector(sides.left, Four<Real>);
      right = __builtin_convertvector(sides.right, Four<Real>);
    } else {
      const From *a = image + index[0], *b = image + index[1];
      const From *c = image + index[2], *d = image + index[3];
      left = converted<Real>(a[0], b[0], c[0], d[0]);
      right = converted<Real>(a[1], b[1], c[1], d[1]);
    }
  }

 private:
  typedef int32_t Signed __attribute__((vector_size(16)));

  // Values of at most 16 bits: the conversion of signed integers is one instruction.
  template <class Integers>
  static Four<Real> signed_to_real(Integers values) {
    return __builtin_convertvector(reinterpret_cast<Signed>(values), Four<Real>);
  }
  template <class Bits>
  static Four<Real> upcast(Bits bits) {
    return __builtin_convertvector(reinterpret_cast<Four<float>>(bits), Four<Real>);
  }
};

}  // namespace cmrfast::cpu

// exp, log, sine and cosine without branches or library calls, so that loops over them vectorise.
//
// Error below 2 units in the last place over the stated domain; NaN stays NaN.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace cmrfast::simd {

template <class T>
struct Format;

template <>
struct Format<float> {
  using Bits = int32_t;
  static constexpr int mantissa = 23;
  static constexpr Bits bias = 127;
  static constexpr float round =
      12582912.0f;                           // adding it leaves the nearest integer in the low bits
  static constexpr float smallest = -87.0f;  // of exp's argument, below it the result stays here
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr int log_terms = 5, log1p_terms = 8, exp_terms = 7, sine_terms = 5;
};

template <>
struct Format<double> {
  using Bits = int64_t;
  static constexpr int mantissa = 52;
  static constexpr Bits bias = 1023;
  static constexpr double round = 6755399441055744.0;
  static constexpr double smallest = -708.0;
  static constexpr double ln2_high = 6.93147180369123816490e-01;
  static constexpr double ln2_low = 1.90821492927058770002e-10;
  static constexpr int log_terms = 11, log1p_terms = 17, exp_terms = 13, sine_terms = 9;
};

// 1 / k!, the coefficients of exp's series.
template <class T>
constexpr auto inverse_factorials = [] {
  std::array<T, Format<T>::exp_terms + 1> table{};
  double value = 1;
  for (int k = 0; k <= Format<T>::exp_terms; ++k) {
    table[k] = static_cast<T>(value);
    value /= k + 1;
  }
  return table;
}();

// e^x for x <= 0. Below -87 (float) or -708 (double) it stays at the smallest normal numbers.
template <class T>
inline T exp_nonpositive(T x) {
  using F = Format<T>;
  using Bits = typename F::Bits;
  x = x < F::smallest ? F::smallest : x;
  const T shifted = x * static_cast<T>(1.44269504088896340736) + F::round;
  const T n = shifted - F::round;
  const T r = (x - n * F::ln2_high) - n * F::ln2_low;  // |r| <= ln2 / 2
  T sum = inverse_factorials<T>[F::exp_terms];
#pragma GCC unroll 16
  for (int k = F::exp_terms - 1; k >= 0; --k) sum = sum * r + inverse_factorials<T>[k];
  const Bits exponent = std::bit_cast<Bits>(shifted) + F::bias;
  using Unsigned = std::make_unsigned_t<Bits>;
  return sum * std::bit_cast<T>(static_cast<Bits>(static_cast<Unsigned>(exponent) << F::mantissa));
}

// 2 artanh(s) = 2 (s + s^3/3 + s^5/5 + ...), the series behind both logarithms.
template <int terms, class T>
inline T twice_artanh(T s) {
  const T square = s * s;
  T sum = 0;
#pragma GCC unroll 20
  for (int k = terms - 1; k >= 0; --k) sum = sum * square + T{2} / static_cast<T>(2 * k + 1);
  return s * sum;
}

// log(1 + e) for e in [0, 1], accurate relative to the result also where e is tiny.
template <class T>
inline T log1p_unit(T e) {
  return twice_artanh<Format<T>::log1p_terms>(e / (2 + e));
}

// log(x) for normal x > 0; -inf at 0, NaN below.
template <class T>
inline T log_positive(T x) {
  using F = Format<T>;
  using Bits = typename F::Bits;
  constexpr T sqrt_half = static_cast<T>(0.70710678118654752440);
  // Counting exponents from sqrt(1/2) puts the mantissa into [sqrt(1/2), sqrt(2)).
  const Bits offset = std::bit_cast<Bits>(x) - std::bit_cast<Bits>(sqrt_half);
  const Bits exponent = offset >> F::mantissa;
  const Bits fraction = offset & ((Bits{1} << F::mantissa) - 1);
  const T m = std::bit_cast<T>(static_cast<Bits>(fraction + std::bit_cast<Bits>(sqrt_half)));
  const T n = static_cast<T>(exponent);
  const T series = twice_artanh<F::log_terms>((m - 1) / (m + 1));
  const T value = n * F::ln2_high + (series + n * F::ln2_low);
  const T edge = x == 0 ? -std::numeric_limits<T>::infinity() : std::numeric_limits<T>::quiet_NaN();
  return x > 0 ? value : edge;
}

template <class T>
struct SineCosine {
  T sine, cosine;
};

// Of the angle turn / 2^32 of a full circle: integers make the reduction to an eighth exact.
template <class T>
inline SineCosine<T> sine_cosine(uint32_t turn) {
  const uint32_t quarter = (turn + (uint32_t{1} << 29)) >> 30;
  const T unit = static_cast<T>(6.28318530717958647693 / 4294967296.0);
  const T angle = static_cast<T>(static_cast<int32_t>(turn - (quarter << 30))) * unit;
  const T square = angle * angle;
  T sine = 1, cosine = 1;  // Taylor's series, whose next terms are below the last place
#pragma GCC unroll 16
  for (int k = Format<T>::sine_terms - 1; k > 0; --k) {
    sine = 1 - sine * square * (T{1} / static_cast<T>(2 * k * (2 * k + 1)));
  }
#pragma GCC unroll 16
  for (int k = Format<T>::sine_terms; k > 0; --k) {
    cosine = 1 - cosine * square * (T{1} / static_cast<T>(2 * k * (2 * k - 1)));
  }
  sine *= angle;
  const T s = quarter & 1 ? cosine : sine, c = quarter & 1 ? sine : cosine;
  return {quarter & 2 ? -s : s, (quarter + 1) & 2 ? -c : c};
}

}  // namespace cmrfast::simd

// Voxels of one dtype as those of another, run by run, and runs that are filled in.
#pragma once

#include <type_traits>

#include "common.h"

namespace cmrfast::cpu {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <class T>
constexpr bool is_floating = std::is_same_v<T, float> || std::is_same_v<T, double> ||
                             std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>;

// Integers of 32 bits or more, and doubles, are exact only in double.
template <class T>
constexpr bool needs_double = std::is_same_v<T, double> || (!is_floating<T> && sizeof(T) > 2);

// From voxels of one dtype to those of another: (voxel - shift) * scale, computed in float or,
// where either dtype needs it, in double.
class Conversion {
 public:
  int64_t from_bytes, to_bytes;  // of a voxel

  Conversion(ScalarType from, ScalarType to, double filling);

  // Converts n voxels, read forwards or, for step -1, backwards.
  void convert(const void* from, void* to, int64_t n, int64_t step, double shift,
               double scale) const;

  // Whether a dtype needs double.
  bool in_double() const { return in_double_; }

  void fill(void* to, int64_t n) const {
    if (n > 0) fill_(to, n, filling_);
  }

 private:
  using Load = void(const void* from, void* reals, int64_t n, int64_t step, double shift,
                    double scale);
  double filling_;
  bool in_double_;
  Load* load_;
  void (*store_)(const void* reals, void* to, int64_t n);  // none if the reals are the voxels
  void (*copy_)(const void* from, void* to, int64_t n, int64_t step);  // none if dtypes differ
  void (*fill_)(void* to, int64_t n, double value);
};

}  // namespace cmrfast::cpu

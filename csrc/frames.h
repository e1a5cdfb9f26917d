// The coordinates in which a matrix maps output positions to input positions, and the matrix
// between voxels that follows. No torch header: nvcc includes this.
#pragma once

#include "enums.h"
#include "windows.h"

namespace cmrfast {

// Along one axis: output voxel o is at coordinate start + step * o, and coordinate x of the input
// is voxel middle + half * x.
struct FrameAxis {
  double start = 0, step = 1, half = 1, middle = 0;

  FrameAxis() = default;
  FrameAxis(Frame frame, int64_t n, int64_t size) {
    if (frame == Frame::kVoxels) return;
    const double voxels = static_cast<double>(size);
    middle = static_cast<double>(n - 1) / 2;
    if (frame == Frame::kEdges) {
      start = 1 / voxels - 1;
      step = 2 / voxels;
      half = static_cast<double>(n) / 2;
    } else {  // the only voxel of an axis of size one is at its centre
      start = size > 1 ? -1 : 0;
      step = size > 1 ? 2 / (voxels - 1) : 0;
      half = middle;
    }
  }
};

// Not fused into one rounding: positions then equal the reference's to the bit, and so do ties.
CMRFAST_HOST_DEVICE inline double multiply_add(double sum, double a, double b) {
#ifdef __CUDA_ARCH__
  return __dadd_rn(sum, __dmul_rn(a, b));
#else
  double product = a * b;
#if defined(__GNUC__) && defined(__x86_64__)
  asm("" : "+x"(product));  // the compiler does not see what is added
#else
  const volatile double rounded = product;
  product = rounded;
#endif
  return sum + product;
#endif
}

// A frame for DIMS axes. Normalised coordinates have the last axis first, as in PyTorch.
template <int DIMS>
struct FrameAxes {
  Frame frame;
  FrameAxis axis[DIMS];

  // Where entry (a, d) of a matrix (DIMS, DIMS + 1) is; column DIMS is the offset.
  CMRFAST_HOST_DEVICE int index(int a, int d) const {
    if (frame == Frame::kVoxels) return a * (DIMS + 1) + d;
    return (DIMS - 1 - a) * (DIMS + 1) + (d < DIMS ? DIMS - 1 - d : DIMS);
  }

  // Entry (a, d) of the matrix from output voxels to input voxels.
  template <class Real>
  CMRFAST_HOST_DEVICE double voxel_entry(const Real* matrix, int a, int d) const {
    const double entry = static_cast<double>(matrix[index(a, d)]);
    if (frame == Frame::kVoxels) return entry;
    if (d < DIMS) return entry * axis[d].step * axis[a].half;
    double base = 0;
    for (int b = 0; b < DIMS; ++b) {
      base = multiply_add(base, static_cast<double>(matrix[index(a, b)]), axis[b].start);
    }
    return multiply_add(axis[a].middle, base + entry, axis[a].half);
  }
};

}  // namespace cmrfast

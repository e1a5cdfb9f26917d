// Volumes in one buffer and windows on them, for CPU and CUDA kernels: where one lies, and which
// part of it is inside. Two space axes are three, the first of size 1. No torch header: nvcc
// includes this.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define CMRFAST_HOST_DEVICE __host__ __device__
#else
#define CMRFAST_HOST_DEVICE
#endif

namespace cmrfast {

CMRFAST_HOST_DEVICE inline int64_t clamped(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

struct Box {
  int64_t n[3];
  CMRFAST_HOST_DEVICE int64_t voxels() const { return n[0] * n[1] * n[2]; }
};

// The sizes of `dims` axes as a box.
inline Box box_of(const int64_t* sizes, int64_t dims) {
  Box box{{1, 1, 1}};
  for (int64_t a = 0; a < dims; ++a) box.n[3 - dims + a] = sizes[a];
  return box;
}

// Volumes of C channels in a buffer of `numel` voxels: row v of the table (V, 1 + dims) holds the
// offset and the shape of volume v. Without a table they are all of one shape, one after the other.
struct Volumes {
  const int64_t* table;
  int64_t V, C, dims, numel;
  Box shape;
};

// One of them. `valid` is false if the table has no such row or if the row reaches beyond the
// buffer; a kernel must then not touch the volume, since the table's values are never checked.
struct Volume {
  int64_t offset;
  Box shape;
  bool valid;

  CMRFAST_HOST_DEVICE Volume(const Volumes& volumes, int64_t v)
      : offset(0), shape{{1, 1, 1}}, valid(false) {
    if (v < 0 || v >= volumes.V) return;
    if (volumes.table == nullptr) {
      shape = volumes.shape;
      offset = v * volumes.C * shape.voxels();
      valid = true;
      return;
    }
    const int64_t* row = volumes.table + v * (volumes.dims + 1);
    offset = row[0];
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      if (a + volumes.dims >= 3) shape.n[a] = row[1 + a + volumes.dims - 3];
    }
    // The exact product of absurd sizes would overflow, so a rounded one is looked at first.
    const double voxels = static_cast<double>(volumes.C) * shape.n[0] * shape.n[1] * shape.n[2];
    const bool sane =
        offset >= 0 && shape.n[0] >= 0 && shape.n[1] >= 0 && shape.n[2] >= 0 && voxels < 4e18;
    valid = sane && volumes.C * shape.voxels() <= volumes.numel - offset;
  }
};

// The offsets o in [begin, end) of a window for which start + o is in [0, n).
struct Inside {
  int64_t begin, end;
  CMRFAST_HOST_DEVICE Inside(int64_t start, int64_t size, int64_t n)
      : begin(clamped(-start, 0, size)), end(clamped(n - start, 0, size)) {
    if (end < begin) end = begin;
  }
  CMRFAST_HOST_DEVICE bool has(int64_t o) const { return o >= begin && o < end; }
};

// Row p of a table (P, dims) of first voxels, clamped to 2^62 so that sums cannot overflow.
CMRFAST_HOST_DEVICE inline void window_start(const int64_t* table, int64_t p, int64_t dims,
                                             int64_t* start) {
  constexpr int64_t far = int64_t{1} << 62;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    start[a] = a + dims < 3 ? 0 : clamped(table[p * dims + a + dims - 3], -far, far);
  }
}

}  // namespace cmrfast

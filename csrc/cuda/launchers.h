// The arguments of the CUDA kernels: raw pointers, sizes and a stream, no torch header.
//
// Every launcher returns an error message or nullptr. Two space axes are three, the first of
// size 1.
#pragma once

#include <cstdint>

#include "../enums.h"
#include "../windows.h"

namespace cmrfast::cuda {

enum class Dtype : int32_t {
  kBool,
  kUint8,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kUint16,
  kUint32,
  kUint64,
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,
};

// Windows of one size on volumes. A null `index` means volume 0 for all, null `flips` no flips.
struct Windows {
  const int64_t* start;  // (P, dims)
  const int64_t* index;  // (P,)
  const bool* flips;     // (P, dims)
  int64_t P, dims;
  Box size;
};

// The windows of each slab of each volume, in order: slab s of volume v has those of
// ranges[v, s, 0] to before ranges[v, s, 1].
struct SlabLists {
  int64_t *ranges, *windows;  // scratch (V, kSlabs, 2); (P * most_slabs(size))
};

// Slabs of a volume, at most; a slab has a multiple of this of planes, or in 2-D of rows.
constexpr int kSlabs = 64;
CMRFAST_HOST_DEVICE constexpr int64_t slab_unit(int64_t dims) { return dims == 2 ? 64 : 1; }

// Slabs that a window may overlap.
CMRFAST_HOST_DEVICE inline int64_t most_slabs(const Box& size, int64_t dims) {
  const int64_t most = (size.n[3 - dims] - 2 + slab_unit(dims)) / slab_unit(dims) + 1;
  return most < kSlabs ? most : kSlabs;
}

struct ExtractPatches {
  Volumes volumes;
  Windows windows;
  const void* buffer;
  Dtype from, to;
  const double *shift, *scale;  // (V, C), null for 0 and 1
  double fill;
  void* out;  // (P, C, *size)
};

struct ExtractPatchesBackward {
  Volumes volumes;  // of the buffer that the gradient is for
  Windows windows;
  const void* grad;  // (P, C, *size)
  Dtype dtype;
  const double* scale;  // (V, C), null for 1
  SlabLists lists;
  void* out;  // (numel,), zeros
};

// Weighted sums over the patches that cover a voxel, divided into a mean or added to `out`,
// `totals`.
struct MergePatches {
  Windows windows;
  int64_t C;
  Box shape;
  const void *patches, *weight;  // (P, C, *size); (*size), null for ones
  Dtype dtype;
  bool mean;
  double fill;
  SlabLists lists;
  void *out, *totals;  // (C, *shape); (*shape), null for a mean
};

struct WindowCounts {
  Volumes volumes;
  Windows windows;
  const uint8_t* mask;
  void* sums;  // scratch (numel,): int32 below 2^31 voxels, else int64
  int64_t* out;
};

// The matrix (axes, axes + 1) from voxels of a grid to voxels of a volume, from the affines (4, 4)
// of the volume and of the grid, float32 or float64.
struct VoxFromVox {
  const void *world_from_vox, *to_world_from_vox;
  bool world_is_double, to_world_is_double;
  int64_t axes;
  double* out;
};

// out[o, x, i] = sum over y of weights[x, y] * values[o, y, i].
struct ContractAxis {
  int64_t O, n, I, M;
  const void* values;
  const double* weights;
  Dtype dtype;
  int64_t* nonzero;  // scratch (M, 2): begin and end of the nonzero weights
  void* rounded;     // scratch (M, n): the weights in the dtype of the values
  void* out;
};

// Images (B, C, *n) at the positions matrix (dims, dims + 1) @ (output position, 1), one matrix for
// each or one for all. Here two axes are two: n and size have `dims` entries.
struct Sampling {
  int64_t B, C, dims, n[3], size[3];
  const void* matrix;
  int64_t matrices;  // B or 1
  bool matrix_is_double;
  Frame frame;
  Mode mode;
  Border border;
  Dtype dtype;
};

struct AffineSample {
  Sampling sampling;
  const void* images;
  double fill;
  void* out;
};

struct AffineSampleBackward {
  Sampling sampling;
  const void *grad, *images;
  void *grad_images, *grad_matrix;  // null if not needed
  double* partial;                  // scratch (B, chunks_of(size), dims * (dims + 1))
};

// A block samples kRuns runs of at most kRun output voxels along the last axis.
constexpr int kRun = 1024, kRuns = 16;
inline int64_t chunks_of(int64_t dims, const int64_t* size) {
  int64_t runs = (size[dims - 1] + kRun - 1) / kRun;
  for (int64_t a = 0; a < dims - 1; ++a) runs *= size[a];
  return (runs + kRuns - 1) / kRuns;
}

}  // namespace cmrfast::cuda

extern "C" {
const char* cmrfast_extract_patches(const cmrfast::cuda::ExtractPatches&, void* stream);
const char* cmrfast_extract_patches_backward(const cmrfast::cuda::ExtractPatchesBackward&,
                                             void* stream);
const char* cmrfast_merge_patches(const cmrfast::cuda::MergePatches&, void* stream);
const char* cmrfast_window_counts(const cmrfast::cuda::WindowCounts&, void* stream);
const char* cmrfast_vox_from_vox(const cmrfast::cuda::VoxFromVox&, void* stream);
const char* cmrfast_contract_axis(const cmrfast::cuda::ContractAxis&, void* stream);
const char* cmrfast_affine_sample(const cmrfast::cuda::AffineSample&, void* stream);
const char* cmrfast_affine_sample_backward(const cmrfast::cuda::AffineSampleBackward&,
                                           void* stream);
}

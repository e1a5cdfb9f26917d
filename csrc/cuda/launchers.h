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

struct ExtractPatches {
  Volumes volumes;
  Windows windows;
  const void* buffer;
  Dtype from, to;
  const double *shift, *scale;  // (V, C)
  double fill;
  void* out;  // (P, C, *size)
};

struct ExtractPatchesBackward {
  Volumes volumes;  // of the buffer that the gradient is for
  Windows windows;
  const void* grad;  // (P, C, *size)
  Dtype dtype;
  const double* scale;
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
  void *out, *totals;  // (C, *shape); (*shape), null for a mean
};

struct WindowCounts {
  Volumes volumes;
  Windows windows;
  const uint8_t* mask;
  void* sums;  // scratch (numel,): int32 below 2^31 voxels, else int64
  int64_t* out;
};

// out[o, x, i] = sum over y of weights[x, y] * values[o, y, i].
struct ContractAxis {
  int64_t O, n, I, M;
  const void* values;
  const double* weights;
  Dtype dtype;
  int64_t* nonzero;  // scratch (M, 2): begin and end of the nonzero weights
  void* out;
};

// Images (B, C, *n) at the positions matrix (B, dims, dims + 1) @ (output voxel, 1). Here two axes
// are two: n and size have `dims` entries.
struct Sampling {
  int64_t B, C, dims, n[3], size[3];
  const double* matrix;
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
  void* grad_images;        // zeros; null if not needed
  int64_t *sums, *largest;  // zeros: (B, C, *n) and (B, C)
  double* grad_matrix;      // null if not needed
  double* partial;          // scratch (B, chunks of kMatrixChunk, dims * (dims + 1))
};

// Output voxels that a block sums for the gradient of the matrix.
constexpr int64_t kMatrixChunk = 4096;

}  // namespace cmrfast::cuda

extern "C" {
const char* cmrfast_extract_patches(const cmrfast::cuda::ExtractPatches&, void* stream);
const char* cmrfast_extract_patches_backward(const cmrfast::cuda::ExtractPatchesBackward&,
                                             void* stream);
const char* cmrfast_merge_patches(const cmrfast::cuda::MergePatches&, void* stream);
const char* cmrfast_window_counts(const cmrfast::cuda::WindowCounts&, void* stream);
const char* cmrfast_contract_axis(const cmrfast::cuda::ContractAxis&, void* stream);
const char* cmrfast_affine_sample(const cmrfast::cuda::AffineSample&, void* stream);
const char* cmrfast_affine_sample_backward(const cmrfast::cuda::AffineSampleBackward&,
                                           void* stream);
}

// What the bindings hand to the CUDA kernels: raw pointers, sizes and a stream, nothing of torch.
//
// Every launcher returns what went wrong, or nullptr. Two axes count as three, the first of size 1.
#pragma once

#include <cstdint>

namespace cmrfast::cuda {

enum class Dtype : int32_t {
  kBool,
  kUint8,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,
};

// Volumes of different shapes in one buffer: row v of the table (V, 1 + dims) is offset and shape.
struct Volumes {
  const int64_t* table;
  int64_t V, C, dims, numel;
};

// Windows of one size on volumes; `index` and `flips` may be null: all on volume 0, none mirrored.
struct Windows {
  const int64_t* start;  // (P, dims)
  const int64_t* index;  // (P,)
  const bool* flips;     // (P, dims)
  int64_t P, dims, size[3];
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

// Sums over the patches that cover a voxel: their mean, or added to the sums there are.
struct MergePatches {
  Windows windows;
  int64_t C, shape[3];
  const void *patches, *weight;  // (P, C, *size); (*size), null for ones
  Dtype dtype;
  bool mean;
  double fill;
  void *out, *totals;  // (C, *shape), and where sums are added to (*shape)
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
  int64_t* reach;  // scratch (M, 2)
  void* out;
};

enum class Mode : int32_t { kLinear = 0, kNearestEven = 1, kNearestUp = 2 };
// Outside: zeros | the nearest border | held for half a voxel, then fill.
enum class Border : int32_t { kZeros = 0, kHold = 1, kHalf = 2 };

// Images (B, C, *n) at the positions matrix (B, dims, dims + 1) @ (output voxel, 1); only here do
// two axes count as two: n and size hold `dims` entries.
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
  void* to_images;          // null where not wanted, else zeros
  int64_t *sums, *largest;  // zeros: (B, C, *n) and (B, C)
  double* to_matrix;        // null where not wanted
  double* partial;          // scratch (B, stretches of kMatrixStretch, dims * (dims + 1))
};

// Voxels of the output that one block sums for the gradient in the matrix.
constexpr int64_t kMatrixStretch = 4096;

enum class Activation : int32_t { kSoftmax = 0, kSigmoid = 1, kNone = 2 };

// Logits (B, K, N) and their target: labels (B, N), or masks (B, K, N).
struct Pixels {
  int64_t B, K, N, ignore_index;
  const void *logits, *target;
  Dtype dtype, target_dtype;
  bool labels;
  Activation activation;
  double eps;
};

// Pixels of a block, and classes that it sums at once: as many as registers hold.
constexpr int64_t kPixelStretch = 4096;
constexpr int class_group(Dtype dtype) { return dtype == Dtype::kFloat64 ? 4 : 8; }

struct DiceCeSums {
  Pixels pixels;
  bool entropy;
  void* softmax;    // scratch (B, N, 2) where softmax has more classes than a group, else null
  double* partial;  // scratch (B, stretches of kPixelStretch, K, 4)
  void* out;        // (B, K, 4)
};

struct DiceCeSumsBackward {
  Pixels pixels;
  const void* grad;  // (B, K, 4)
  void* out;         // (B, K, N)
};

struct LabelFaults {
  const void* target;
  Dtype dtype;
  int64_t count, classes, ignore_index;
  int64_t* out;  // one number, zero
};

struct NtXent {
  int64_t N, M, D;
  const void *anchors, *candidates;  // (N, D), (M, D)
  const int64_t* targets;            // (N,)
  Dtype dtype;
  double temperature;
  void *unit_anchors, *unit_candidates;         // scratch, as large as both
  void *anchor_inverse, *candidate_inverse;     // scratch (N,), (M,): 1 / length, 0 for zero rows
  void *top, *sum;                              // scratch (N,)
  double* losses;                               // scratch (N,)
  void *loss, *grad_anchors, *grad_candidates;  // gradients null where not wanted
};

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
const char* cmrfast_dice_ce_sums(const cmrfast::cuda::DiceCeSums&, void* stream);
const char* cmrfast_dice_ce_sums_backward(const cmrfast::cuda::DiceCeSumsBackward&, void* stream);
const char* cmrfast_label_faults(const cmrfast::cuda::LabelFaults&, void* stream);
const char* cmrfast_nt_xent(const cmrfast::cuda::NtXent&, void* stream);
}

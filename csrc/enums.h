// The options of the ops as their schemas number them, for CPU and CUDA kernels. No torch header:
// nvcc includes this.
#pragma once

#include <cstdint>

namespace cmrfast {

// How a sample is taken; ties of the nearest voxel go to the even one, or half up.
enum class Mode : int32_t { kLinear = 0, kNearestEven = 1, kNearestUp = 2, kCubic = 3 };

// What is outside the image: zeros, the nearest voxel, or the nearest voxel up to half a voxel
// beyond the outer centres and then the fill value.
enum class Border : int32_t { kZeros = 0, kClamp = 1, kClampHalf = 2 };

// What a matrix maps to input positions: voxels, or coordinates from -1 to 1 with the last axis
// first, measured between the outer edges or between the centres of the outer voxels.
enum class Frame : int32_t { kVoxels = 0, kEdges = 1, kCentres = 2 };

// What turns logits into probabilities.
enum class Activation : int32_t { kSoftmax = 0, kSigmoid = 1, kNone = 2 };

}  // namespace cmrfast

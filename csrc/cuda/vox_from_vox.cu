// The matrix from voxels of a new grid to voxels of a volume: one thread, so that it takes one
// launch rather than those of forty small operations.
#include "common.cuh"

namespace cmrfast::cuda {
namespace {

__device__ void load(const void* affine, bool is_double, double (&to)[4][4]) {
#pragma unroll
  for (int e = 0; e < 16; ++e) {
    to[e / 4][e % 4] = is_double ? static_cast<const double*>(affine)[e]
                                 : static_cast<double>(static_cast<const float*>(affine)[e]);
  }
}

// By cofactors, each expanded along row r ^ 1 into minors of the two rows of the other half.
__device__ void invert(const double (&m)[4][4], double (&inverse)[4][4]) {
  double determinant = 0;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const double (&row)[4] = m[r ^ 1], (&top)[4] = m[r < 2 ? 2 : 0], (&low)[4] = m[r < 2 ? 3 : 1];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int x = c > 0 ? 0 : 1, y = c > 1 ? 1 : 2, z = c > 2 ? 2 : 3;  // the other columns
      const auto minor = [&](int p, int q) { return top[p] * low[q] - top[q] * low[p]; };
      const double cofactor = row[x] * minor(y, z) - row[y] * minor(x, z) + row[z] * minor(x, y);
      inverse[c][r] = (r + c) % 2 ? -cofactor : cofactor;
      if (r == 0) determinant += m[0][c] * inverse[c][0];
    }
  }
#pragma unroll
  for (int e = 0; e < 16; ++e) inverse[e / 4][e % 4] /= determinant;
}

__global__ void vox_from_vox(VoxFromVox call) {
  double source[4][4], target[4][4], inverse[4][4];
  load(call.world_from_vox, call.world_is_double, source);
  load(call.to_world_from_vox, call.to_world_is_double, target);
  invert(source, inverse);
  // Below this there is only the rounding error of the inverse.
  constexpr double unit = int64_t{1} << 36;
#pragma unroll
  for (int e = 0; e < 12; ++e) {
    const int a = e / 4, d = e % 4;
    if (a >= call.axes || (d >= call.axes && d < 3)) continue;
    double sum = 0;
#pragma unroll
    for (int x = 0; x < 4; ++x) sum += inverse[a][x] * target[x][d];
    call.out[a * (call.axes + 1) + (d < 3 ? d : call.axes)] = rint(sum * unit) / unit;
  }
}

}  // namespace
}  // namespace cmrfast::cuda

using namespace cmrfast::cuda;

const char* cmrfast_vox_from_vox(const VoxFromVox& call, void* stream) {
  CMRFAST_LAUNCH(vox_from_vox, dim3(1), dim3(1), stream, call);
  return launch_error();
}

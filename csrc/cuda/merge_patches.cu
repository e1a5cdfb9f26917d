// Overlapping patches into a volume, as a gather: each voxel adds the patches that cover it.
//
// A block owns a tile of one channel and adds the patches in order, so that every voxel is written
// once and the result is the same in every run. Minimum traffic: every patch once, the volume once.
#include "dtypes.cuh"
#include "windows.cuh"

namespace cmrfast::cuda {
namespace {

// Where a plane begins, in the patches of a channel and in the weight.
struct Plane {
  int64_t patch, weight;
};

template <class T, int COLUMNS, bool MEAN, bool WEIGHTED>
__global__ void __launch_bounds__(kThreads, 1)
    merge_patches(MergePatches call, Tiles<COLUMNS> tiles, Divisor per_channel) {
  constexpr int rows = Tiles<COLUMNS>::kRows;
  const int64_t* size = call.windows.size.n;
  const int64_t plane = size[1] * size[2], patch_voxels = size[0] * plane;
  // Without a mean, the totals count as one more channel.
  const int64_t channels = MEAN ? call.C : call.C + 1;
  for (int64_t item = blockIdx.x; item < tiles.total * channels; item += gridDim.x) {
    const int64_t c = per_channel.divide(item);
    const Tile<COLUMNS> tile(tiles, item - c * tiles.total);
    const T* patches = static_cast<const T*>(call.patches) + c * patch_voxels;
    const T* weight = static_cast<const T*>(call.weight);
    const bool sums = c < call.C;
    T* to = static_cast<T*>(sums ? call.out : call.totals);
    if (sums) to += c * call.shape.voxels();
    T sum[rows][COLUMNS] = {};                     // of the weights, for the totals
    [[maybe_unused]] T total[rows][COLUMNS] = {};  // of the weights, for a mean
    const bool covered = for_each_window_over(
        tile, call.shape, 0, call.windows, call.lists,
        [&](int64_t p, int i) { return Plane{p * call.C * patch_voxels + i * plane, i * plane}; },
        [&](const Plane& at, int j, int k, int r, const bool (&inside)[COLUMNS]) {
          const int64_t row = j * size[2] + k;
          const T* patch = patches + at.patch + row;
          const T* weights = WEIGHTED ? weight + at.weight + row : nullptr;
#pragma unroll
          for (int q = 0; q < COLUMNS; ++q) {
            if (!inside[q]) continue;
            const T w = WEIGHTED ? weights[32 * q] : T{1};
            if (MEAN) total[r][q] += w;
            sum[r][q] += MEAN || sums ? w * patch[32 * q] : w;
          }
        });
    if (!covered && !MEAN) continue;
    tile.for_each_voxel(call.shape, [&](int r, int q, int64_t voxel) {
      if (MEAN) {
        const T mean = sum[r][q] / total[r][q];
        to[voxel] = total[r][q] > 0 ? mean : static_cast<T>(call.fill);
      } else {
        to[voxel] += sum[r][q];
      }
    });
  }
}

}  // namespace
}  // namespace cmrfast::cuda

using namespace cmrfast::cuda;

const char* cmrfast_merge_patches(const MergePatches& call, void* stream) {
  const int64_t channels = call.mean ? call.C : call.C + 1;
  if (call.shape.voxels() * channels == 0) return nullptr;
  const cmrfast::Volumes volume{nullptr, 1, 1, call.windows.dims, call.shape.voxels(), call.shape};
  list_windows(call.windows, volume, call.lists, stream);
  with_columns(call.shape.n[2], [&](auto columns) {
    constexpr int COLUMNS = decltype(columns)::value;
    const Tiles<COLUMNS> tiles(call.shape);
    with_real(call.dtype, [&](auto zero) {
      using T = decltype(zero);
      const auto launch = [&](auto kernel) {
        CMRFAST_LAUNCH(kernel, blocks_for(tiles.total * channels), dim3(kThreads), stream, call,
                       tiles, Divisor(tiles.total));
      };
      if (call.mean) {
        launch(call.weight ? merge_patches<T, COLUMNS, true, true>
                           : merge_patches<T, COLUMNS, true, false>);
      } else {
        launch(call.weight ? merge_patches<T, COLUMNS, false, true>
                           : merge_patches<T, COLUMNS, false, false>);
      }
    });
  });
  return launch_error();
}

// Overlapping patches into a volume, as a gather: each voxel adds the patches that cover it.
//
// A block owns a tile of one channel and adds the patches in order, so that every voxel is written
// once and the result is the same in every run. Minimum traffic: every patch once, the volume once.
#include "dtypes.cuh"
#include "windows.cuh"

namespace cmrfast::cuda {
namespace {

// Stores four voxels of a row at once if they are aligned and inside, else one by one.
template <class T>
__device__ void store_row(const T (&values)[kTileVoxels], int64_t left, T* to) {
  if constexpr (sizeof(T) * kTileVoxels == 16) {
    if (left >= kTileVoxels && reinterpret_cast<uintptr_t>(to) % 16 == 0) return store(values, to);
  }
#pragma unroll
  for (int x = 0; x < kTileVoxels; ++x) {
    if (x < left) to[x] = values[x];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) merge_patches(MergePatches call, Tiles tiles) {
  const int64_t* size = call.windows.size.n;
  const int64_t* shape = call.shape.n;
  const int64_t patch_voxels = call.windows.size.voxels();
  // Without `mean`, the totals count as one more channel.
  const int64_t channels = call.mean ? call.C : call.C + 1;
  for (int64_t item = blockIdx.x; item < tiles.total() * channels; item += gridDim.x) {
    const int64_t c = item / tiles.total();
    const TilePlace place(tiles, item % tiles.total());
    const T* patches = c < call.C ? static_cast<const T*>(call.patches) : nullptr;
    const T* weight = static_cast<const T*>(call.weight);
    T sum[kTileVoxels] = {}, total[kTileVoxels] = {};
    bool covered = false;
    const auto add = [&](int64_t p, const int64_t* start) {
      covered = true;
      const int64_t oi = place.i - start[0], oj = place.j - start[1];
      if (oi < 0 || oi >= size[0] || oj < 0 || oj >= size[1]) return;
      const int64_t row = (oi * size[1] + oj) * size[2];
      const int64_t patch = (p * call.C + c) * patch_voxels + row;
#pragma unroll
      for (int x = 0; x < kTileVoxels; ++x) {
        const int64_t ok = place.k + x - start[2];
        if (ok < 0 || ok >= size[2]) continue;
        const T w = weight == nullptr ? T{1} : weight[row + ok];
        total[x] += w;
        if (patches != nullptr) sum[x] += w * patches[patch + ok];
      }
    };
    for_each_window_over(place, call.windows, [](int64_t) { return true; }, add);
    if (place.i >= shape[0] || place.j >= shape[1] || place.k >= shape[2]) continue;
    const int64_t at = (place.i * shape[1] + place.j) * shape[2] + place.k;
    const int64_t left = shape[2] - place.k;
    if (call.mean) {
#pragma unroll
      for (int x = 0; x < kTileVoxels; ++x) {
        const T mean = sum[x] / total[x];
        sum[x] = total[x] > 0 ? mean : static_cast<T>(call.fill);
      }
      store_row(sum, left, static_cast<T*>(call.out) + c * call.shape.voxels() + at);
    } else if (covered) {
      const bool sums = c < call.C;
      T* to = sums ? static_cast<T*>(call.out) + c * call.shape.voxels() + at
                   : static_cast<T*>(call.totals) + at;
#pragma unroll
      for (int x = 0; x < kTileVoxels; ++x) {
        sum[x] = sums ? sum[x] : total[x];
        if (x < left) sum[x] += to[x];
      }
      store_row(sum, left, to);
    }
  }
}

}  // namespace
}  // namespace cmrfast::cuda

using namespace cmrfast::cuda;

const char* cmrfast_merge_patches(const MergePatches& call, void* stream) {
  const Tiles tiles(call.shape);
  const int64_t items = tiles.total() * (call.mean ? call.C : call.C + 1);
  if (items == 0) return nullptr;
  with_real(call.dtype, [&](auto zero) {
    CMRFAST_LAUNCH(merge_patches<decltype(zero)>, blocks_for(items), dim3(kThreads), stream, call,
                   tiles);
  });
  return launch_error();
}

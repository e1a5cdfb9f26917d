// Overlapping patches back into a volume, gathered: each voxel adds the patches that cover it.
//
// A block makes a tile of one channel and adds patches in their order, so that nothing is written
// twice and bits are the same in every run. Least bytes: every patch once, the volume once.
#include "windows.cuh"

namespace cmrfast::cuda {
namespace {

// Four voxels of a row at once where the row lets them, else one by one as far as it goes.
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
  const int64_t* size = call.windows.size;
  const int64_t* shape = call.shape;
  const int64_t patch_voxels = size[0] * size[1] * size[2];
  // Where sums are added to, the totals are one channel more.
  const int64_t channels = call.mean ? call.C : call.C + 1;
  for (int64_t item = blockIdx.x; item < tiles.total() * channels; item += gridDim.x) {
    const int64_t c = item / tiles.total();
    const TilePlace place(tiles, item % tiles.total());
    const T* patches = c < call.C ? static_cast<const T*>(call.patches) : nullptr;
    const T* weight = static_cast<const T*>(call.weight);
    T sum[kTileVoxels] = {}, total[kTileVoxels] = {};
    bool touched = false;
    const auto add = [&](int64_t p, const int64_t* start) {
      touched = true;
      const int64_t oi = place.i - start[0], oj = place.j - start[1];
      if (oi < 0 || oi >= size[0] || oj < 0 || oj >= size[1]) return;
      const int64_t row = (oi * size[1] + oj) * size[2];
      const int64_t patch = (p * call.C + c) * patch_voxels + row;
#pragma unroll
      for (int x = 0; x < kTileVoxels; ++x) {
        const int64_t ok = place.k + x - start[2];
        if (ok < 0 || ok >= size[2]) continue;
        const T share = weight == nullptr ? T{1} : weight[row + ok];
        total[x] += share;
        if (patches != nullptr) sum[x] += share * patches[patch + ok];
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
      store_row(sum, left, static_cast<T*>(call.out) + c * shape[0] * shape[1] * shape[2] + at);
    } else if (touched) {
      const bool sums = c < call.C;
      T* to = sums ? static_cast<T*>(call.out) + c * shape[0] * shape[1] * shape[2] + at
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
  const Tiles tiles(call.shape[0], call.shape[1], call.shape[2]);
  const int64_t items = tiles.total() * (call.mean ? call.C : call.C + 1);
  if (items == 0) return nullptr;
  if (call.dtype == Dtype::kFloat64) {
    CMRFAST_LAUNCH(merge_patches<double>, blocks_for(items), dim3(kThreads), stream, call, tiles);
  } else {
    CMRFAST_LAUNCH(merge_patches<float>, blocks_for(items), dim3(kThreads), stream, call, tiles);
  }
  return launch_error();
}

// Windows on volumes in a kernel: where one lies, and which windows overlap a tile.
#pragma once

#include "common.cuh"

namespace cmrfast::cuda {

// One window: its first voxel and its flips.
struct Window {
  int64_t start[3];
  bool flip[3];

  __device__ Window(const Windows& windows, int64_t p) : flip{false, false, false} {
    window_start(windows.start, p, windows.dims, start);
    if (windows.flips == nullptr) return;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      if (a + windows.dims >= 3) flip[a] = windows.flips[p * windows.dims + a + windows.dims - 3];
    }
  }
};

// A tile of voxels per block: kTileVoxels per thread, neighbours along the last axis.
constexpr int kTileVoxels = 4;
__host__ __device__ constexpr int tile_size(int axis) { return axis == 0 ? 4 : axis == 1 ? 8 : 32; }
static_assert(tile_size(0) * tile_size(1) * tile_size(2) == kThreads * kTileVoxels);

struct Tiles {
  int64_t count[3];

  __host__ __device__ explicit Tiles(const Box& shape) {
    for (int a = 0; a < 3; ++a) count[a] = ceil_div(shape.n[a], tile_size(a));
  }
  __host__ __device__ int64_t total() const { return count[0] * count[1] * count[2]; }
};

// The voxels of a thread in a tile: (i, j, k), (i, j, k + 1), ...; some may be outside the volume.
struct TilePlace {
  int64_t first[3], i, j, k;

  __device__ TilePlace(const Tiles& tiles, int64_t tile) {
    first[2] = tile % tiles.count[2] * tile_size(2);
    first[1] = tile / tiles.count[2] % tiles.count[1] * tile_size(1);
    first[0] = tile / tiles.count[2] / tiles.count[1] * tile_size(0);
    constexpr int across = tile_size(2) / kTileVoxels;
    const int t = static_cast<int>(threadIdx.x);
    k = first[2] + t % across * kTileVoxels;
    j = first[1] + t / across % tile_size(1);
    i = first[0] + t / across / tile_size(1);
  }
};

// Calls visit(p, start) for the windows that overlap a tile of a volume and that `accept` accepts,
// in order of p: a block tests kThreads windows at a time and compacts those that do. All threads
// of the block must call it.
template <class Accept, class Visit>
__device__ void for_each_window_over(const TilePlace& place, const Windows& windows,
                                     const Accept& accept, const Visit& visit) {
  constexpr int warps = kThreads / 32;
  __shared__ int64_t ids[kThreads], starts[kThreads][3];
  __shared__ int warp_counts[warps];
  for (int64_t first = 0; first < windows.P; first += kThreads) {
    const int64_t p = first + threadIdx.x;
    bool overlaps = p < windows.P && accept(p);
    int64_t start[3] = {0, 0, 0};
    if (overlaps) {
      window_start(windows.start, p, windows.dims, start);
#pragma unroll
      for (int a = 0; a < 3; ++a) {
        overlaps = overlaps && start[a] < place.first[a] + tile_size(a) &&
                   start[a] + windows.size.n[a] > place.first[a];
      }
    }
    const unsigned votes = __ballot_sync(kWholeWarp, overlaps);
    if (lane_of_warp() == 0) warp_counts[threadIdx.x / 32] = __popc(votes);
    __syncthreads();
    int slot = 0, total = 0;
    for (int w = 0; w < warps; ++w) {
      if (w == static_cast<int>(threadIdx.x / 32)) slot = total;
      total += warp_counts[w];
    }
    if (overlaps) {
      slot += __popc(votes & ((1u << lane_of_warp()) - 1));
      ids[slot] = p;
      for (int a = 0; a < 3; ++a) starts[slot][a] = start[a];
    }
    __syncthreads();
    for (int i = 0; i < total; ++i) visit(ids[i], starts[i]);
    __syncthreads();
  }
}

}  // namespace cmrfast::cuda

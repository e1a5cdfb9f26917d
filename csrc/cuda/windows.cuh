// Windows on volumes: where one lies, which part of it is inside, which windows reach a tile.
#pragma once

#include "common.cuh"

namespace cmrfast::cuda {

// One volume of the buffer; `legal` is false where the table has none of that number, or where it
// does not lie within the buffer: then nothing of it may be touched.
struct Volume {
  int64_t offset, n[3];
  bool legal;

  __device__ Volume(const Volumes& volumes, int64_t v) : offset(0), n{1, 1, 1}, legal(false) {
    if (v < 0 || v >= volumes.V) return;
    const int64_t* row = volumes.table + v * (volumes.dims + 1);
    offset = row[0];
#pragma unroll
    for (int a = 0; a < 3; ++a) {  // the last axis of all is the last of the row
      if (a + volumes.dims >= 3) n[a] = row[1 + a + volumes.dims - 3];
    }
    // In double first: the exact product of absurd sizes would overflow.
    const double about = static_cast<double>(volumes.C) * n[0] * n[1] * n[2];
    const bool sane = offset >= 0 && n[0] >= 0 && n[1] >= 0 && n[2] >= 0 && about < 4e18;
    legal = sane && volumes.C * voxels() <= volumes.numel - offset;
  }
  __device__ int64_t voxels() const { return n[0] * n[1] * n[2]; }
};

// The offsets o in [begin, end) of a window for which start + o lies in [0, n).
struct Inside {
  int64_t begin, end;
  __device__ Inside(int64_t start, int64_t size, int64_t n)
      : begin(clamped(-start, 0, size)), end(clamped(n - start, 0, size)) {
    if (end < begin) end = begin;
  }
  __device__ bool has(int64_t o) const { return o >= begin && o < end; }
};

// One window: its first voxel, none beyond 2^62 so that sums cannot overflow, and its flips.
struct Window {
  int64_t start[3];
  bool flip[3];

  __device__ Window(const Windows& windows, int64_t p) : start{0, 0, 0}, flip{false, false, false} {
    constexpr int64_t far = int64_t{1} << 62;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      if (a + windows.dims < 3) continue;
      const int64_t at = p * windows.dims + a + windows.dims - 3;
      start[a] = clamped(windows.start[at], -far, far);
      flip[a] = windows.flips != nullptr && windows.flips[at];
    }
  }
};

// A box of voxels that one block makes: kTileVoxels each thread, neighbours along the last axis.
constexpr int kTileVoxels = 4;
__host__ __device__ constexpr int tile_size(int axis) { return axis == 0 ? 4 : axis == 1 ? 8 : 32; }
static_assert(tile_size(0) * tile_size(1) * tile_size(2) == kThreads * kTileVoxels);

struct Tiles {
  int64_t n[3], count[3];

  __host__ __device__ Tiles(int64_t n0, int64_t n1, int64_t n2) : n{n0, n1, n2} {
    count[0] = ceil_div(n0, tile_size(0));
    count[1] = ceil_div(n1, tile_size(1));
    count[2] = ceil_div(n2, tile_size(2));
  }
  __host__ __device__ int64_t total() const { return count[0] * count[1] * count[2]; }
};

// A thread's voxels of a tile: (i, j, k), (i, j, k + 1), ...; some may lie beyond the volume.
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

// Calls visit(p, start) for the windows that reach a tile of a volume, in order of p: a block looks
// at kThreads windows at a time and keeps those that do. Every thread of the block must come here.
template <class Wanted, class Visit>
__device__ void for_each_window_over(const TilePlace& place, const Windows& windows,
                                     const Wanted& wanted, const Visit& visit) {
  constexpr int warps = kThreads / 32;
  __shared__ int64_t found[kThreads], starts[kThreads][3];
  __shared__ int before[warps];
  for (int64_t first = 0; first < windows.P; first += kThreads) {
    const int64_t p = first + threadIdx.x;
    bool reaches = p < windows.P && wanted(p);
    int64_t start[3] = {0, 0, 0};
    if (reaches) {
      const Window window(windows, p);
#pragma unroll
      for (int a = 0; a < 3; ++a) {
        start[a] = window.start[a];
        reaches = reaches && start[a] < place.first[a] + tile_size(a) &&
                  start[a] + windows.size[a] > place.first[a];
      }
    }
    const unsigned votes = __ballot_sync(kWholeWarp, reaches);
    if (lane_of_warp() == 0) before[threadIdx.x / 32] = __popc(votes);
    __syncthreads();
    int at = 0, total = 0;
    for (int w = 0; w < warps; ++w) {
      if (w == static_cast<int>(threadIdx.x / 32)) at = total;
      total += before[w];
    }
    if (reaches) {
      at += __popc(votes & ((1u << lane_of_warp()) - 1));
      found[at] = p;
      for (int a = 0; a < 3; ++a) starts[at][a] = start[a];
    }
    __syncthreads();
    for (int f = 0; f < total; ++f) visit(found[f], starts[f]);
    __syncthreads();
  }
}

}  // namespace cmrfast::cuda

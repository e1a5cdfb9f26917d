// The windows of each slab of each volume, for kernels that gather windows into tiles: two passes
// over the windows per slab, in order, without atomics.
#include "windows.cuh"

namespace cmrfast::cuda {
namespace {

// The slabs that a window overlaps, from `begin` to before `end`.
struct SlabRange {
  int begin = 0, end = 0;

  __device__ SlabRange(const Box& shape, const Slabs& slabs, const Windows& windows, int64_t p) {
    int64_t start[3];
    window_start(windows.start, p, windows.dims, start);
    const int64_t n = shape.n[slabs.axis];
    const int64_t low = clamped(start[slabs.axis], 0, n);
    const int64_t high = clamped(start[slabs.axis] + windows.size.n[slabs.axis], 0, n);
    if (high <= low) return;
    begin = slabs.of(low);
    end = slabs.of(high - 1) + 1;
  }
};

// A block lists the windows of one slab in order. Its list begins after as many places as the
// windows of earlier volumes and slabs may take.
__global__ void __launch_bounds__(kThreads)
    fill_lists(Windows windows, Volumes volumes, SlabLists lists) {
  constexpr int warps = kThreads / 32;
  __shared__ int64_t sums[warps];
  __shared__ int counts[warps];
  const int warp = static_cast<int>(threadIdx.x) / 32, slab = static_cast<int>(blockIdx.x);
  const int64_t most = most_slabs(windows.size, windows.dims);
  for (int64_t v = blockIdx.y; v < volumes.V; v += gridDim.y) {
    const Volume volume(volumes, v);
    const Box shape = volume.valid ? volume.shape : Box{{0, 0, 0}};
    const Slabs slabs(shape, windows.dims);
    int64_t before = 0;
    for (int64_t p = threadIdx.x; p < windows.P; p += kThreads) {
      const int64_t owner = volume_of(windows, p);
      if (owner >= 0 && owner < v) before += most;
      if (owner != v) continue;
      const SlabRange range(shape, slabs, windows, p);
      const int end = range.end < slab ? range.end : slab;
      if (end > range.begin) before += end - range.begin;
    }
    before = warp_sum(before);
    __syncthreads();  // the sums of an earlier volume may still be read
    if (lane_of_warp() == 0) sums[warp] = before;
    __syncthreads();
    int64_t at = 0;
    for (int w = 0; w < warps; ++w) at += sums[w];
    const int64_t begin = at;
    for (int64_t first = 0; first < windows.P; first += kThreads) {
      const int64_t p = first + threadIdx.x;
      bool overlaps = p < windows.P && volume_of(windows, p) == v;
      if (overlaps) {
        const SlabRange range(shape, slabs, windows, p);
        overlaps = slab >= range.begin && slab < range.end;
      }
      const unsigned votes = __ballot_sync(kWholeWarp, overlaps);
      __syncthreads();  // the counts of earlier windows may still be read
      if (lane_of_warp() == 0) counts[warp] = __popc(votes);
      __syncthreads();
      int64_t slot = at + __popc(votes & ((1u << lane_of_warp()) - 1));
      for (int w = 0; w < warps; ++w) {
        if (w < warp) slot += counts[w];
        at += counts[w];
      }
      if (overlaps) lists.windows[slot] = p;
    }
    if (threadIdx.x == 0) {
      lists.ranges[2 * (v * kSlabs + slab)] = begin;
      lists.ranges[2 * (v * kSlabs + slab) + 1] = at;
    }
  }
}

}  // namespace

void list_windows(const Windows& windows, const Volumes& volumes, const SlabLists& lists,
                  void* stream) {
  const dim3 grid(kSlabs, static_cast<unsigned>(smaller(volumes.V, 65535)));
  CMRFAST_LAUNCH(fill_lists, grid, dim3(kThreads), stream, windows, volumes, lists);
}

}  // namespace cmrfast::cuda

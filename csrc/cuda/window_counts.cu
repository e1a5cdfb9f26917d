// Nonzero voxels of windows from a summed-area table: eight look-ups, whatever the window's size.
//
// The table has the mask's shape and sums up to and including each voxel. It is made one axis after
// the other: the last with one warp per row, the others with one thread per line, neighbouring
// lines side by side. Minimum traffic: the mask once; the table is written once, then read and
// written twice more (in 2-D, once more).
#include "windows.cuh"

namespace cmrfast::cuda {
namespace {

// Running sums along rows: a warp takes 32 voxels at a time and carries the sum over.
template <class Sum>
__global__ void __launch_bounds__(kThreads)
    sum_rows(Volumes volumes, const uint8_t* mask, Sum* sums) {
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  const int lane = lane_of_warp();
  for (int64_t v = blockIdx.y; v < volumes.V; v += gridDim.y) {
    const Volume volume(volumes, v);
    if (!volume.valid) continue;
    const int64_t n = volume.shape.n[2];
    for (int64_t row = blockIdx.x * static_cast<int64_t>(kThreads / 32) + threadIdx.x / 32;
         row < volume.shape.n[0] * volume.shape.n[1]; row += warps) {
      const int64_t base = volume.offset + row * n;
      Sum carried = 0;
      for (int64_t first = 0; first < n; first += 32) {
        const int64_t k = first + lane;
        Sum sum = k < n && mask[base + k] != 0;
#pragma unroll
        for (int step = 1; step < 32; step <<= 1) {
          const Sum lower = __shfl_up_sync(kWholeWarp, sum, step);
          if (lane >= step) sum += lower;
        }
        if (k < n) sums[base + k] = carried + sum;
        carried += static_cast<Sum>(__shfl_sync(kWholeWarp, sum, 31));
      }
    }
  }
}

// Running sums along axis 1 or 0, in place: one thread per line, neighbours side by side in memory.
template <class Sum>
__global__ void __launch_bounds__(kThreads) sum_lines(Volumes volumes, int axis, Sum* sums) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t v = blockIdx.y; v < volumes.V; v += gridDim.y) {
    const Volume volume(volumes, v);
    if (!volume.valid) continue;
    const int64_t inner = axis == 1 ? volume.shape.n[2] : volume.shape.n[1] * volume.shape.n[2];
    const int64_t outer = axis == 1 ? volume.shape.n[0] : 1,
                  n = axis == 1 ? volume.shape.n[1] : volume.shape.n[0];
    for (int64_t line = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
         line < outer * inner; line += step) {
      Sum* at = sums + volume.offset + line / inner * n * inner + line % inner;
      Sum sum = 0;
      for (int64_t i = 0; i < n; ++i, at += inner) *at = sum += *at;
    }
  }
}

template <class Sum>
__global__ void __launch_bounds__(kThreads) count_windows(WindowCounts call) {
  const int64_t* size = call.windows.size.n;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t p = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; p < call.windows.P;
       p += step) {
    const Volume volume(call.volumes, volume_of(call.windows, p));
    const Window window(call.windows, p);
    const int64_t* n = volume.shape.n;
    const Inside i(window.start[0], size[0], n[0]);
    const Inside j(window.start[1], size[1], n[1]);
    const Inside k(window.start[2], size[2], n[2]);
    if (!volume.valid || i.begin == i.end || j.begin == j.end || k.begin == k.end) {
      call.out[p] = 0;
      continue;
    }
    const Sum* sums = static_cast<const Sum*>(call.sums) + volume.offset;
    // The sum of all voxels before (a, b, c), offsets in the window.
    const auto below = [&](int64_t a, int64_t b, int64_t c) -> int64_t {
      a += window.start[0] - 1;
      b += window.start[1] - 1;
      c += window.start[2] - 1;
      return a < 0 || b < 0 || c < 0 ? 0 : static_cast<int64_t>(sums[(a * n[1] + b) * n[2] + c]);
    };
    const auto plane = [&](int64_t a) {
      return below(a, j.end, k.end) - below(a, j.begin, k.end) - below(a, j.end, k.begin) +
             below(a, j.begin, k.begin);
    };
    call.out[p] = plane(i.end) - plane(i.begin);
  }
}

template <class Sum>
void launch(const WindowCounts& call, void* stream) {
  const auto& volumes = call.volumes;
  Sum* sums = static_cast<Sum*>(call.sums);
  if (volumes.V * volumes.numel > 0) {
    // The shapes are in device memory; blocks stride, so the grid needs only their mean.
    dim3 grid = blocks_for(ceil_div(volumes.numel, volumes.V * 4 * kThreads));
    grid.y = static_cast<unsigned>(smaller(volumes.V, 65535));
    CMRFAST_LAUNCH(sum_rows<Sum>, grid, dim3(kThreads), stream, volumes, call.mask, sums);
    CMRFAST_LAUNCH(sum_lines<Sum>, grid, dim3(kThreads), stream, volumes, 1, sums);
    if (volumes.dims == 3) {
      CMRFAST_LAUNCH(sum_lines<Sum>, grid, dim3(kThreads), stream, volumes, 0, sums);
    }
  }
  CMRFAST_LAUNCH(count_windows<Sum>, blocks_for(ceil_div(call.windows.P, kThreads)), dim3(kThreads),
                 stream, call);
}

}  // namespace
}  // namespace cmrfast::cuda

using namespace cmrfast::cuda;

const char* cmrfast_window_counts(const WindowCounts& call, void* stream) {
  if (call.windows.P == 0) return nullptr;
  if (call.volumes.numel >> 31) {
    launch<int64_t>(call, stream);
  } else {
    launch<int32_t>(call, stream);
  }
  return launch_error();
}

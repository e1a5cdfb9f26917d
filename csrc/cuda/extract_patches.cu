// Patches out of packed volumes, and the gradient of that.
//
// Forward: a block writes a chunk of one channel of one patch, each thread 16 aligned bytes at a
// time, across rows; the dtype of the source is a switch per 16 bytes. Backward: a block owns a
// tile of one volume and adds the gradients of the patches cut from it, in order, so that no two
// threads write one voxel. Minimum traffic: each voxel of the patches is read once and written
// once.
#include "dtypes.cuh"
#include "windows.cuh"

namespace cmrfast::cuda {
namespace {

constexpr int64_t kCellsPerThread = 8;

// Voxels that a thread writes at a time: 16 bytes, and at most 8 so that they fit in registers.
template <class To>
constexpr int kVoxels = sizeof(To) == 1 ? 8 : 16 / sizeof(To);

struct PatchShape {
  Divisor channels, rows, row;  // channels, rows of a plane, voxels of a row

  explicit PatchShape(const ExtractPatches& call)
      : channels(call.volumes.C), rows(call.windows.size.n[1]), row(call.windows.size.n[2]) {}
};

// The source of 16 bytes of the output: an index into the buffer per voxel, -1 outside.
template <int N>
struct Cell {
  int64_t source[N];
};

template <class From, class To, int N>
__device__ void convert(const void* buffer, const Cell<N>& cell, double shift, double scale,
                        To fill, To* values) {
  using Real = std::conditional_t<needs_double<From> || needs_double<To>, double, float>;
  const From* from = static_cast<const From*>(buffer);
  const Real minus = static_cast<Real>(shift), times = static_cast<Real>(scale);
  const bool unchanged = std::is_same_v<From, To> && minus == 0 && times == 1;
#pragma unroll
  for (int x = 0; x < N; ++x) {
    values[x] = fill;
    if (cell.source[x] < 0) continue;
    const From voxel = from[cell.source[x]];
    if constexpr (std::is_same_v<From, To>) {
      values[x] = voxel;
      if (unchanged) continue;
    }
    values[x] = from_real<To>((to_real<Real>(voxel) - minus) * times);
  }
}

template <class To>
__global__ void __launch_bounds__(kThreads)
    extract_patches(ExtractPatches call, PatchShape shape, Chunks chunks, To fill) {
  constexpr int N = kVoxels<To>;
  const int64_t* size = call.windows.size.n;
  for (int64_t s = blockIdx.x; s < chunks.total; s += gridDim.x) {
    const Chunk chunk(chunks, s);
    const int64_t p = shape.channels.divide(chunk.item);
    const int64_t c = chunk.item - p * call.volumes.C;
    const int64_t v = call.windows.index[p];
    const Volume volume(call.volumes, v);
    const Window window(call.windows, p);
    const int64_t* n = volume.shape.n;
    const Inside inside[3] = {{window.start[0], size[0], n[0]},
                              {window.start[1], size[1], n[1]},
                              {window.start[2], size[2], n[2]}};
    const int64_t base = volume.offset + c * volume.shape.voxels();
    const double minus = volume.valid ? call.shift[v * call.volumes.C + c] : 0;
    const double times = volume.valid ? call.scale[v * call.volumes.C + c] : 0;
    // Chunks begin and end at patches, stores at multiples of 16 bytes: the 16 bytes at either end
    // of a chunk may be shared with the neighbouring block, and each then writes only its own
    // voxels.
    const int64_t origin = chunk.item * chunks.count;
    const int64_t first = origin + chunk.begin, last = origin + chunk.end;
    for (int64_t at = (first / N + threadIdx.x) * N; at < last; at += kThreads * N) {
      const int64_t begin = at < first ? first : at;
      const int64_t within = begin - origin;
      int64_t line = shape.row.divide(within);
      int64_t k = within - line * size[2];
      int64_t i = shape.rows.divide(line);
      int64_t j = line - i * size[1];
      Cell<N> cell;
      bool row_inside = false;
      int64_t row = 0;
      const auto enter_row = [&] {
        const int64_t oi = window.flip[0] ? size[0] - 1 - i : i;
        const int64_t oj = window.flip[1] ? size[1] - 1 - j : j;
        row_inside = volume.valid && inside[0].has(oi) && inside[1].has(oj);
        if (!row_inside) return;
        row = base + ((window.start[0] + oi) * n[1] + window.start[1] + oj) * n[2];
      };
      enter_row();
#pragma unroll
      for (int x = 0; x < N; ++x) {
        cell.source[x] = -1;
        if (at + x < begin || at + x >= last) continue;
        if (k == size[2]) {
          k = 0;
          if (++j == size[1]) {
            j = 0;
            ++i;
          }
          enter_row();
        }
        const int64_t ok = window.flip[2] ? size[2] - 1 - k : k;
        if (row_inside && inside[2].has(ok)) cell.source[x] = row + window.start[2] + ok;
        ++k;
      }
      To values[N];
      with_dtype(call.from, [&](auto zero) {
        convert<decltype(zero)>(call.buffer, cell, minus, times, fill, values);
      });
      To* to = static_cast<To*>(call.out) + at;
      if (begin == at && at + N <= last) {
        store(values, to);
      } else {
#pragma unroll
        for (int x = 0; x < N; ++x) {
          if (at + x >= begin && at + x < last) to[x] = values[x];
        }
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) extract_patches_backward(ExtractPatchesBackward call) {
  const int64_t* size = call.windows.size.n;
  const int64_t C = call.volumes.C, patch_voxels = call.windows.size.voxels();
  for (int64_t v = blockIdx.y; v < call.volumes.V; v += gridDim.y) {
    const Volume volume(call.volumes, v);
    if (!volume.valid) continue;
    const int64_t* n = volume.shape.n;
    const Tiles tiles(volume.shape);
    for (int64_t item = blockIdx.x; item < tiles.total() * C; item += gridDim.x) {
      const int64_t c = item / tiles.total();
      const TilePlace place(tiles, item % tiles.total());
      T sum[kTileVoxels] = {};
      const auto add = [&](int64_t p, const int64_t* start) {
        const int64_t oi = place.i - start[0], oj = place.j - start[1];
        if (oi < 0 || oi >= size[0] || oj < 0 || oj >= size[1]) return;
        const Window window(call.windows, p);
        const int64_t pi = window.flip[0] ? size[0] - 1 - oi : oi;
        const int64_t pj = window.flip[1] ? size[1] - 1 - oj : oj;
        const T* row = static_cast<const T*>(call.grad) + (p * C + c) * patch_voxels +
                       (pi * size[1] + pj) * size[2];
#pragma unroll
        for (int x = 0; x < kTileVoxels; ++x) {
          const int64_t ok = place.k + x - start[2];
          if (ok >= 0 && ok < size[2]) sum[x] += row[window.flip[2] ? size[2] - 1 - ok : ok];
        }
      };
      const auto from_volume = [&](int64_t p) { return call.windows.index[p] == v; };
      for_each_window_over(place, call.windows, from_volume, add);
      if (place.i >= n[0] || place.j >= n[1]) continue;
      const T times = static_cast<T>(call.scale[v * C + c]);
      T* to = static_cast<T*>(call.out) + volume.offset + c * volume.shape.voxels() +
              (place.i * n[1] + place.j) * n[2] + place.k;
      for (int x = 0; x < kTileVoxels && place.k + x < n[2]; ++x) to[x] = times * sum[x];
    }
  }
}

}  // namespace
}  // namespace cmrfast::cuda

using namespace cmrfast::cuda;

const char* cmrfast_extract_patches(const ExtractPatches& call, void* stream) {
  const int64_t voxels = call.windows.size.voxels();
  if (call.windows.P * call.volumes.C * voxels == 0) return nullptr;
  with_dtype(call.to, [&](auto zero) {
    using To = decltype(zero);
    const int64_t cells = kThreads * kCellsPerThread;
    const Chunks chunks(call.windows.P * call.volumes.C, voxels, cells * kVoxels<To>);
    CMRFAST_LAUNCH((extract_patches<To>), blocks_for(chunks.total), dim3(kThreads), stream, call,
                   PatchShape(call), chunks, from_real<To>(call.fill));
  });
  return launch_error();
}

const char* cmrfast_extract_patches_backward(const ExtractPatchesBackward& call, void* stream) {
  const auto& volumes = call.volumes;
  if (volumes.V * volumes.C * volumes.numel == 0) return nullptr;
  // The shapes are in device memory; blocks stride, so the grid needs only their mean.
  const int64_t tile = kThreads * kTileVoxels;
  dim3 grid = blocks_for(ceil_div(volumes.numel, tile * volumes.V));
  grid.y = static_cast<unsigned>(smaller(volumes.V, 65535));
  with_real(call.dtype, [&](auto zero) {
    CMRFAST_LAUNCH(extract_patches_backward<decltype(zero)>, grid, dim3(kThreads), stream, call);
  });
  return launch_error();
}

// Patches out of packed volumes, and the gradient of that.
//
// Forward: a thread writes 16 bytes of a row at a time. Backward: a block owns a tile of one
// channel of one volume and adds the gradients of the patches cut from it, in order, so that no two
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
  Divisor channels;
  SmallDivisor rows, cells;  // rows of a plane, cells of a row
  int size[3], cells_of_row;
  bool aligned;  // every cell

  PatchShape(const ExtractPatches& call, int voxels)
      : channels(call.volumes.C),
        rows(call.windows.size.n[1]),
        cells(ceil_div(call.windows.size.n[2], voxels)),
        cells_of_row(static_cast<int>(ceil_div(call.windows.size.n[2], voxels))),
        aligned(call.windows.size.n[2] % voxels == 0) {
    for (int a = 0; a < 3; ++a) size[a] = static_cast<int>(call.windows.size.n[a]);
  }
};

// Along an axis, voxel o of a patch is voxel start + along * o of the window, which is in the
// volume from `begin` on for `count` voxels.
struct PatchAxis {
  int start, along, begin;
  unsigned count;

  __device__ PatchAxis(int64_t first, bool flip, int size, int64_t n)
      : start(flip ? size - 1 : 0), along(flip ? -1 : 1) {
    const Inside inside(first, size, n);
    begin = static_cast<int>(inside.begin);
    count = static_cast<unsigned>(inside.end - inside.begin);
  }
  __device__ int in_window(int o) const { return start + along * o; }
  __device__ bool inside(int o) const { return static_cast<unsigned>(o - begin) < count; }
};

template <class From, class To>
__global__ void __launch_bounds__(kThreads)
    extract_patches(ExtractPatches call, PatchShape shape, Chunks chunks, To fill) {
  using Real = std::conditional_t<needs_double<From> || needs_double<To>, double, float>;
  // Integers that are copied stay exact, also where no float represents them.
  constexpr bool copies = std::is_same_v<From, To> && !is_floating<From>;
  constexpr int N = kVoxels<To>;
  for (int64_t s = blockIdx.x; s < chunks.total; s += gridDim.x) {
    const Chunk chunk(chunks, s);
    const int64_t p = shape.channels.divide(chunk.item);
    const int64_t c = chunk.item - p * call.volumes.C;
    const int64_t v = volume_of(call.windows, p);
    const Volume volume(call.volumes, v);
    const Window window(call.windows, p);
    const int64_t* n = volume.shape.n;
    const PatchAxis i_axis(window.start[0], window.flip[0], shape.size[0], n[0]);
    const PatchAxis j_axis(window.start[1], window.flip[1], shape.size[1], n[1]);
    const PatchAxis k_axis(window.start[2], window.flip[2], shape.size[2], n[2]);
    const bool flipped = window.flip[2];
    // The window's first voxel; where it is outside nothing is read, and the sum may wrap around.
    const auto start = [&](int a) { return static_cast<uint64_t>(window.start[a]); };
    const uint64_t plane_voxels = static_cast<uint64_t>(n[1]) * n[2];
    const auto row_voxels = static_cast<unsigned>(n[2]);
    const uint64_t first = volume.offset + c * (n[0] * plane_voxels) + start(0) * plane_voxels +
                           start(1) * row_voxels + start(2);
    const uint64_t origin = in_register(address_of(call.buffer) + first * sizeof(From));
    const auto number = [&](const double* numbers, double other) {
      const bool given = numbers != nullptr && volume.valid;
      return static_cast<Real>(given ? numbers[v * call.volumes.C + c] : other);
    };
    const Real minus = number(call.shift, 0), times = number(call.scale, 1);
    const bool unchanged = copies && minus == 0 && times == 1;
    To* patch = static_cast<To*>(call.out) + chunk.item * call.windows.size.voxels();
    const int end = static_cast<int>(chunk.end), last = flipped ? N - 1 : 0;
    for (int t = static_cast<int>(chunk.begin + threadIdx.x); t < end; t += kThreads) {
      const int row = shape.cells.divide(t), k = (t - row * shape.cells_of_row) * N;
      const int i = shape.rows.divide(row), j = row - i * shape.size[1];
      const int wi = i_axis.in_window(i), wj = j_axis.in_window(j);
      // The cell's voxels in the order of the volume, from the first on.
      const int low = k_axis.in_window(k) - last;
      const bool row_inside = volume.valid && i_axis.inside(wi) && j_axis.inside(wj);
      const uint64_t line = static_cast<unsigned>(wi) * plane_voxels +
                            static_cast<uint64_t>(static_cast<unsigned>(wj)) * row_voxels;
      const uint64_t address = origin + (line + low) * sizeof(From);
      const From* from = at_address<const From>(in_register(address));
      To values[N];
#pragma unroll
      for (int x = 0; x < N; ++x) {
        values[x] = fill;
        if (!row_inside || !k_axis.inside(low + x)) continue;
        if constexpr (copies) {
          if (unchanged) {
            values[x] = from[x];
            continue;
          }
        }
        values[x] = from_real<To>((to_real<Real>(from[x]) - minus) * times);
      }
      if (flipped) {
#pragma unroll
        for (int x = 0; x < N / 2; ++x) {
          const To other = values[x];
          values[x] = values[N - 1 - x];
          values[N - 1 - x] = other;
        }
      }
      if (shape.aligned) {
        store(values, patch + static_cast<int64_t>(t) * N);
      } else {
        To* to = patch + static_cast<int64_t>(row) * shape.size[2] + k;
#pragma unroll
        for (int x = 0; x < N; ++x) {
          if (k + x < shape.size[2]) to[x] = values[x];
        }
      }
    }
  }
}

// The plane of a patch that was cut from a plane of the volume: voxel (j, k) of the window is at
// origin[j * down + k * right].
template <class T>
struct Plane {
  const T* origin;
  int64_t down;
  int right;
};

template <class T, int COLUMNS>
__global__ void __launch_bounds__(kThreads) extract_patches_backward(ExtractPatchesBackward call) {
  const int64_t* size = call.windows.size.n;
  const int64_t C = call.volumes.C, patch_voxels = call.windows.size.voxels();
  for (int64_t v = blockIdx.y; v < call.volumes.V; v += gridDim.y) {
    const Volume volume(call.volumes, v);
    if (!volume.valid) continue;
    const Tiles<COLUMNS> tiles(volume.shape);
    for (int64_t n = blockIdx.x; n < tiles.total * C; n += gridDim.x) {
      const int64_t c = n / tiles.total;
      const Tile<COLUMNS> tile(tiles, n - c * tiles.total);
      const T* grad = static_cast<const T*>(call.grad) + c * patch_voxels;
      T sum[Tiles<COLUMNS>::kRows][COLUMNS] = {};
      for_each_window_over(
          tile, volume.shape, v, call.windows, call.lists,
          [&](int64_t p, int i) {
            const Window window(call.windows, p);
            const int64_t pi = window.flip[0] ? size[0] - 1 - i : i;
            const int64_t pj = window.flip[1] ? size[1] - 1 : 0;
            const int64_t pk = window.flip[2] ? size[2] - 1 : 0;
            const T* origin = grad + p * C * patch_voxels + (pi * size[1] + pj) * size[2] + pk;
            return Plane<T>{origin, window.flip[1] ? -size[2] : size[2], window.flip[2] ? -1 : 1};
          },
          [&](const Plane<T>& plane, int j, int k, int r, const bool (&inside)[COLUMNS]) {
            const T* row = plane.origin + j * plane.down + k * plane.right;
#pragma unroll
            for (int q = 0; q < COLUMNS; ++q) {
              if (inside[q]) sum[r][q] += row[32 * q * plane.right];
            }
          });
      const T times = call.scale == nullptr ? T{1} : static_cast<T>(call.scale[v * C + c]);
      T* to = static_cast<T*>(call.out) + volume.offset + c * volume.shape.voxels();
      tile.for_each_voxel(volume.shape,
                          [&](int r, int q, int64_t voxel) { to[voxel] = times * sum[r][q]; });
    }
  }
}

}  // namespace
}  // namespace cmrfast::cuda

using namespace cmrfast::cuda;

const char* cmrfast_extract_patches(const ExtractPatches& call, void* stream) {
  const auto& size = call.windows.size;
  if (call.windows.P * call.volumes.C * size.voxels() == 0) return nullptr;
  with_dtype(call.to, [&](auto to) {
    using To = decltype(to);
    const PatchShape shape(call, kVoxels<To>);
    const Chunks chunks(call.windows.P * call.volumes.C, size.n[0] * size.n[1] * shape.cells_of_row,
                        kThreads * kCellsPerThread);
    with_dtype(call.from, [&](auto from) {
      CMRFAST_LAUNCH((extract_patches<decltype(from), To>), blocks_for(chunks.total),
                     dim3(kThreads), stream, call, shape, chunks, from_real<To>(call.fill));
    });
  });
  return launch_error();
}

const char* cmrfast_extract_patches_backward(const ExtractPatchesBackward& call, void* stream) {
  const auto& volumes = call.volumes;
  if (volumes.V * volumes.C * volumes.numel == 0) return nullptr;
  list_windows(call.windows, volumes, call.lists, stream);
  // The shapes are in device memory; blocks stride, so the grid needs only their mean.
  // Volumes are seldom narrow where the windows on them are not.
  with_columns(call.windows.size.n[2], [&](auto columns) {
    constexpr int COLUMNS = decltype(columns)::value;
    constexpr int64_t tile = Tiles<COLUMNS>::kHeight * Tiles<COLUMNS>::kWidth;
    dim3 grid = blocks_for(ceil_div(volumes.numel, tile * volumes.V));
    grid.y = static_cast<unsigned>(smaller(volumes.V, 65535));
    with_real(call.dtype, [&](auto zero) {
      CMRFAST_LAUNCH((extract_patches_backward<decltype(zero), COLUMNS>), grid, dim3(kThreads),
                     stream, call);
    });
  });
  return launch_error();
}

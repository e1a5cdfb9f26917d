// Windows on volumes in a kernel: where one lies, which of them overlap a tile of a volume.
//
// Volumes are cut into slabs, and each slab gets a list of its windows first, so that a tile tests
// those of its slab only and the cost grows with the voxels that windows cover.
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

__device__ inline int64_t volume_of(const Windows& windows, int64_t p) {
  return windows.index == nullptr ? 0 : windows.index[p];
}

// Tiles of one plane of a volume each, one per block: a thread has kRows rows and COLUMNS voxels of
// each, 32 apart, so that the lanes of a warp are neighbours. Narrow volumes take one column.
template <int COLUMNS>
struct Tiles {
  static constexpr int kRows = COLUMNS == 1 ? 8 : 4, kHeight = kRows * kThreads / 32;
  static constexpr int kWidth = 32 * COLUMNS;

  unsigned rows, columns;  // of tiles in a plane
  int64_t total;           // in a volume

  __host__ __device__ explicit Tiles(const Box& shape)
      : rows(static_cast<unsigned>(ceil_div(shape.n[1], kHeight))),
        columns(static_cast<unsigned>(ceil_div(shape.n[2], kWidth))),
        total(shape.n[0] * rows * columns) {}
};

template <int COLUMNS>
struct Tile {
  using Grid = Tiles<COLUMNS>;
  int64_t first[3];  // its voxel nearest to the origin
  int row, column;   // the first voxel of this thread in it

  __device__ Tile(const Grid& tiles, int64_t number)
      : row(static_cast<int>(threadIdx.x) / 32 * Grid::kRows), column(lane_of_warp()) {
    const auto n = static_cast<unsigned>(number);
    const unsigned line = n / tiles.columns;
    first[0] = line / tiles.rows;
    first[1] = static_cast<int64_t>(line % tiles.rows) * Grid::kHeight;
    first[2] = static_cast<int64_t>(n % tiles.columns) * Grid::kWidth;
  }

  // Calls visit(r, q, voxel) for the voxels of the thread, which is voxel (r, q) of the thread.
  template <class Visit>
  __device__ void for_each_voxel(const Box& shape, const Visit& visit) const {
#pragma unroll
    for (int r = 0; r < Grid::kRows; ++r) {
      const int64_t j = first[1] + row + r;
      const int64_t line = (first[0] * shape.n[1] + j) * shape.n[2];
#pragma unroll
      for (int q = 0; q < COLUMNS; ++q) {
        const int64_t k = first[2] + column + 32 * q;
        if (j < shape.n[1] && k < shape.n[2]) visit(r, q, line + k);
      }
    }
  }
};

// Slabs of a volume along its first axis, of planes, or in 2-D of rows of tiles.
struct Slabs {
  int axis;
  unsigned width;

  __device__ Slabs(const Box& shape, int64_t dims) : axis(static_cast<int>(3 - dims)) {
    const int64_t unit = slab_unit(dims);
    const int64_t units = ceil_div(shape.n[axis] > 0 ? shape.n[axis] : 1, unit);
    width = (static_cast<unsigned>(units - 1) / kSlabs + 1) * static_cast<unsigned>(unit);
  }
  __device__ int of(int64_t voxel) const {
    return static_cast<int>(static_cast<unsigned>(voxel) / width);
  }
};

// Lists the windows of every slab of the volumes.
void list_windows(const Windows& windows, const Volumes& volumes, const SlabLists& lists,
                  void* stream);

// Calls visit(window, j, k, r, inside) for each window p over row r of a thread in a tile, in order
// of p. `window` is what enter(p, i) returned, (i, j, k + 32 q) are the row's voxels in the window,
// where inside[q]. All threads of the block must call it; returns whether a window overlaps the
// tile.
template <int COLUMNS, class Enter, class Visit>
__device__ bool for_each_window_over(const Tile<COLUMNS>& tile, const Box& shape, int64_t v,
                                     const Windows& windows, const SlabLists& lists,
                                     const Enter& enter, const Visit& visit) {
  constexpr int warps = kThreads / 32;
  __shared__ int64_t ids[kThreads];
  __shared__ int starts[kThreads][3], counts[warps];  // relative to the tile
  constexpr int rows = Tiles<COLUMNS>::kRows;
  const int extent[3] = {1, Tiles<COLUMNS>::kHeight, Tiles<COLUMNS>::kWidth};
  const int size[3] = {0, static_cast<int>(windows.size.n[1]), static_cast<int>(windows.size.n[2])};
  const Slabs slabs(shape, windows.dims);
  const int64_t* range = lists.ranges + 2 * (v * kSlabs + slabs.of(tile.first[slabs.axis]));
  const int warp = static_cast<int>(threadIdx.x) / 32;
  bool covered = false;
  for (int64_t first = range[0]; first < range[1]; first += kThreads) {
    const int64_t at = first + threadIdx.x;
    bool overlaps = at < range[1];
    int64_t p = 0, start[3] = {0, 0, 0};
    if (overlaps) {
      p = lists.windows[at];
      window_start(windows.start, p, windows.dims, start);
#pragma unroll
      for (int a = 0; a < 3; ++a) {
        start[a] -= tile.first[a];
        overlaps = overlaps && start[a] < extent[a] && start[a] + windows.size.n[a] > 0;
      }
    }
    const unsigned votes = __ballot_sync(kWholeWarp, overlaps);
    if (lane_of_warp() == 0) counts[warp] = __popc(votes);
    __syncthreads();
    int slot = __popc(votes & ((1u << lane_of_warp()) - 1)), total = 0;
    for (int w = 0; w < warps; ++w) {
      if (w < warp) slot += counts[w];
      total += counts[w];
    }
    covered = covered || total > 0;
    if (overlaps) {
      ids[slot] = p;
#pragma unroll
      for (int a = 0; a < 3; ++a) starts[slot][a] = static_cast<int>(start[a]);
    }
    __syncthreads();
    for (int n = 0; n < total; ++n) {
      const int i = -starts[n][0], j = tile.row - starts[n][1], k = tile.column - starts[n][2];
      if (j + rows <= 0 || j >= size[1]) continue;
      bool inside[COLUMNS];
#pragma unroll
      for (int q = 0; q < COLUMNS; ++q) inside[q] = k + 32 * q >= 0 && k + 32 * q < size[2];
      const auto window = enter(ids[n], i);
#pragma unroll
      for (int r = 0; r < rows; ++r) {
        if (j + r >= 0 && j + r < size[1]) visit(window, j + r, k, r, inside);
      }
    }
    __syncthreads();
  }
  return covered;
}

// Calls body(std::integral_constant<int, COLUMNS>) with the columns of tiles for rows of a length.
template <class Body>
void with_columns(int64_t length, const Body& body) {
  length <= 32 ? body(std::integral_constant<int, 1>{}) : body(std::integral_constant<int, 4>{});
}

}  // namespace cmrfast::cuda

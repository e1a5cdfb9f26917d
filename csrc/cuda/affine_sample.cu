// Affine sampling without a grid in memory.
//
// A warp takes a run of output voxels; positions are 64-bit integers where all taps are inside,
// exact doubles elsewhere. Minimum traffic: images and output once; the taps of a voxel come from
// the caches.
#include "sampling.cuh"

namespace cmrfast::cuda {
namespace {

template <class In, int DIMS, bool ONE_CHANNEL>
__global__ void __launch_bounds__(kThreads)
    sample_linear(AffineSample call, Grid<DIMS> grid, Chunks chunks) {
  using T = Acc<In>;
  const Sampling& s = call.sampling;
  const int C = ONE_CHANNEL ? 1 : static_cast<int>(s.C);
  const T fill = s.border == Border::kClampHalf ? static_cast<T>(call.fill) : T{0};
  for (int64_t n = blockIdx.x; n < chunks.total; n += gridDim.x) {
    const Chunk chunk(chunks, n);
    const Run<DIMS>* runs = runs_of(s, grid, chunk);
    const In* images = static_cast<const In*>(call.images) + chunk.item * s.C * grid.numel;
    if constexpr (kUnitsSuffice<T>) images = in_register(images);
    In* out = static_cast<In*>(call.out) + chunk.item * s.C * grid.out_numel;
    for (int r = threadIdx.x / 32; r < chunk.end - chunk.begin; r += kWarps) {
      const Run<DIMS>& run = runs[r];
      const Units<DIMS> units = run.units;
      const Range inside = kUnitsSuffice<T> ? units.inside : Range{0, 0};
      if (ONE_CHANNEL && kUnitsSuffice<T> && units.straight) {
        const Rows<In, DIMS> rows(grid, units);
        int k = inside.begin + lane_of_warp();
        const uint64_t step = units.step[DIMS - 1];
        uint64_t x = units.start[DIMS - 1] + step * static_cast<unsigned>(k);
        for (In* to = out + run.out + k; k < inside.end; k += 32, to += 32, x += 32 * step) {
          *to = from_real<In>(rows.value(images, x));
        }
      } else if constexpr (kUnitsSuffice<T>) {
        int k = inside.begin + lane_of_warp();
        In* voxel = out + run.out + k;
        for (; k < inside.end; k += 32, voxel += 32) {
          const Cell<DIMS> cell(grid, units, k);
          const In* image = images;
          In* to = voxel;
          int c = 0;
#pragma unroll 1
          do {
            *to = from_real<In>(cell.value(image + cell.index));
            image += grid.numel;
            to += grid.out_numel;
          } while (++c < C);
        }
      }
      for (int rest = lane_of_warp(); rest < run.count - inside.count(); rest += 32) {
        const int k = inside.beyond(rest);
        double x[DIMS];
        run.position(k, x);
        const Taps<T, DIMS> taps(grid, x, s.border);
        In* to = out + run.out + k;
#pragma unroll 1
        for (int c = 0; c < C; ++c, to += grid.out_numel) {
          T sum = 0;
#pragma unroll
          for (int t = 0; t < taps.count && !taps.outside; ++t) {
            sum += taps.weight(t) * taps.voxel(images + c * grid.numel, t);
          }
          *to = from_real<In>(taps.outside ? fill : sum);
        }
      }
    }
  }
}

// Nearest copies voxels, so only their size matters; `fill` has their dtype.
template <class T, int DIMS>
__global__ void __launch_bounds__(kThreads)
    sample_nearest(AffineSample call, Grid<DIMS> grid, Chunks chunks, T fill) {
  const Sampling& s = call.sampling;
  const int C = static_cast<int>(s.C);
  for (int64_t n = blockIdx.x; n < chunks.total; n += gridDim.x) {
    const Chunk chunk(chunks, n);
    const Run<DIMS>* runs = runs_of(s, grid, chunk);
    const T* images = static_cast<const T*>(call.images) + chunk.item * s.C * grid.numel;
    T* out = static_cast<T*>(call.out) + chunk.item * s.C * grid.out_numel;
    for (int r = threadIdx.x / 32; r < chunk.end - chunk.begin; r += kWarps) {
      const Run<DIMS>& run = runs[r];
      for (int k = lane_of_warp(); k < run.count; k += 32) {
        double x[DIMS];
        run.position(k, x);
        const int64_t at = nearest(grid, x, s.mode, s.border);
        T* to = out + run.out + k;
#pragma unroll 1
        for (int c = 0; c < C; ++c) {
          to[c * grid.out_numel] = at < 0 ? fill : images[c * grid.numel + at];
        }
      }
    }
  }
}

template <int DIMS>
void launch_forward(const AffineSample& call, void* stream) {
  const Sampling& s = call.sampling;
  const Grid<DIMS> grid(s);
  const Chunks chunks = grid.chunks(s.B);
  if (chunks.total * s.C == 0) return;
  const dim3 blocks = blocks_for(chunks.total), threads(kThreads);
  if (s.mode != Mode::kLinear) {
    with_dtype(s.dtype, [&](auto zero) {
      using T = decltype(zero);
      using Word = std::conditional_t<
          sizeof(T) == 1, uint8_t,
          std::conditional_t<sizeof(T) == 2, uint16_t,
                             std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>>;
      const T value = from_real<T>(call.fill);
      Word fill;
      memcpy(&fill, &value, sizeof(fill));
      CMRFAST_LAUNCH((sample_nearest<Word, DIMS>), blocks, threads, stream, call, grid, chunks,
                     fill);
    });
    return;
  }
  with_floating(s.dtype, [&](auto zero) {
    using In = decltype(zero);
    if (s.C == 1) {
      CMRFAST_LAUNCH((sample_linear<In, DIMS, true>), blocks, threads, stream, call, grid, chunks);
    } else {
      CMRFAST_LAUNCH((sample_linear<In, DIMS, false>), blocks, threads, stream, call, grid, chunks);
    }
  });
}

}  // namespace
}  // namespace cmrfast::cuda

using namespace cmrfast::cuda;

const char* cmrfast_affine_sample(const AffineSample& call, void* stream) {
  call.sampling.dims == 2 ? launch_forward<2>(call, stream) : launch_forward<3>(call, stream);
  return launch_error();
}

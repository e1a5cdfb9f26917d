// The gradients of affine sampling.
//
// Of the images: a thread per image voxel gathers the output voxels around it, found by the inverse
// matrix, in order; no two threads write one voxel. Of the matrix: sums over a block, then over
// blocks in order. Minimum traffic: the output's gradient and the images, read once, and the
// gradient of the images.
#include "sampling.cuh"

namespace cmrfast::cuda {
namespace {

constexpr int64_t kChunk = 8 * kThreads;

// The weight of an image voxel in the sample at a position.
template <int DIMS>
__device__ double weight_of(const Sampling& call, const Grid<DIMS>& grid,
                            const double (&position)[DIMS], const int (&voxel)[DIMS]) {
  if (call.mode != Mode::kLinear) {
    int64_t index = 0;
#pragma unroll
    for (int a = 0; a < DIMS; ++a) index = index * grid.n[a] + voxel[a];
    return nearest(grid, position, call.mode, call.border) == index;
  }
  double weight = 1;
#pragma unroll
  for (int a = 0; a < DIMS; ++a) {
    double x = position[a];
    const double last = static_cast<double>(grid.n[a] - 1);
    if (call.border == Border::kClampHalf && !(x >= -0.5 && x < last + 0.5)) return 0;
    if (call.border != Border::kZeros) x = clamp_to_image(x, last);
    weight *= fmax(0.0, 1 - fabs(x - static_cast<double>(voxel[a])));
  }
  return weight;
}

// The output voxels, ends included, that an image voxel may be a tap of.
template <int DIMS>
struct Box {
  int voxel[DIMS], begin[DIMS], end[DIMS];
};

// Where these are: in a box around the preimage of the image voxel.
template <int DIMS>
struct Preimage {
  double offset[DIMS];
  float step[DIMS][DIMS];     // the matrix without its offset
  float inverse[DIMS][DIMS];  // of it
  float reach[DIMS];          // half the extent of the preimage of a cube of two voxels a side
  float slack[DIMS];          // more than the rounding errors
  bool finite, compact;       // the matrix; whether all of a box falls near the voxel

  __device__ Preimage() {}
  __device__ Preimage(const Grid<DIMS>& grid, const double* matrix) : finite(true), compact(true) {
    const auto m = [&](int a, int d) { return matrix[a % DIMS * (DIMS + 1) + d % DIMS]; };
    const auto cofactor = [&](int a, int d) {
      if constexpr (DIMS == 2) return (a == d ? 1 : -1) * m(a + 1, d + 1);
      return m(a + 1, d + 1) * m(a + 2, d + 2) - m(a + 1, d + 2) * m(a + 2, d + 1);
    };
    double determinant = 0;
#pragma unroll
    for (int d = 0; d < DIMS; ++d) determinant += m(0, d) * cofactor(0, d);
    const bool usable = fabs(determinant) < 1e37;  // of larger numbers, reciprocal() gives 0
    const float per_determinant = usable ? reciprocal(static_cast<float>(determinant)) : NAN;
#pragma unroll
    for (int d = 0; d < DIMS; ++d) {
      float rounding = static_cast<float>(grid.size[d]);
      reach[d] = 0;
#pragma unroll
      for (int a = 0; a < DIMS; ++a) {
        inverse[d][a] = static_cast<float>(cofactor(a, d)) * per_determinant;
        offset[a] = matrix[a * (DIMS + 1) + DIMS];
        reach[d] += fabsf(inverse[d][a]);
        rounding += fabsf(inverse[d][a]) * static_cast<float>(fabs(offset[a]) + grid.n[a]);
      }
      slack[d] = 0x1p-6f + 0x1p-20f * rounding;
    }
#pragma unroll
    for (int a = 0; a < DIMS; ++a) {
      float extent = 0;
#pragma unroll
      for (int d = 0; d < DIMS; ++d) {
        step[a][d] = static_cast<float>(m(a, d));
        extent += static_cast<float>(fabs(m(a, d))) * (reach[d] + slack[d] + 1);
      }
      compact = compact && extent < 32;
      finite = finite && fabs(offset[a]) < 1e30 && extent - extent == 0;
    }
  }

  // Clamped positions reach an outer voxel from any distance.
  __device__ void find(const Grid<DIMS>& grid, bool clamped, Box<DIMS>& box) const {
#pragma unroll
    for (int d = 0; d < DIMS; ++d) {
      float low = -slack[d] - reach[d], high = slack[d] + reach[d];
#pragma unroll
      for (int a = 0; a < DIMS; ++a) {
        const float at = static_cast<float>(static_cast<double>(box.voxel[a]) - offset[a]);
        low += inverse[d][a] * at;
        high += inverse[d][a] * at;
        if (!clamped) continue;
        const float far = 1e9f * inverse[d][a];
        if (box.voxel[a] == 0) (far > 0 ? low : high) -= far;
        if (box.voxel[a] == grid.n[a] - 1) (far > 0 ? high : low) += far;
      }
      clip(low, high, grid.size[d], box.begin[d], box.end[d]);
    }
  }

  // The integers in [low, high] that are below size; a NaN is no bound.
  __device__ static void clip(float low, float high, int64_t size, int& begin, int& end) {
    constexpr float largest = 0x7fffff80;  // of the floats that are integers of 32 bits
    begin = static_cast<int>(fminf(fmaxf(ceilf(low), 0.0f), largest));
    const int last = static_cast<int>(fmaxf(fminf(floorf(high), largest), -1.0f));
    end = static_cast<int>(smaller(last, size - 1));
  }

  // Calls add(weight, output voxel) for all of a compact box; `from` is where its first voxel
  // falls, relative to the image voxel.
  template <int D = 0, class Add>
  __device__ void visit(const Grid<DIMS>& grid, const Box<DIMS>& box, const float (&from)[DIMS],
                        int64_t index, const Add& add) const {
    float x[DIMS];
#pragma unroll
    for (int a = 0; a < DIMS; ++a) x[a] = from[a];
#pragma unroll 1
    for (int o = box.begin[D]; o <= box.end[D]; ++o) {
      if constexpr (D == DIMS - 1) {
        float weight = 1;
#pragma unroll
        for (int a = 0; a < DIMS; ++a) weight *= fmaxf(0.0f, 1 - fabsf(x[a]));
        add(weight, index + o);
      } else {
        visit<D + 1>(grid, box, x, (index + o) * grid.size[D + 1], add);
      }
#pragma unroll
      for (int a = 0; a < DIMS; ++a) x[a] += step[a][D];
    }
  }

  // The same for any box and any way of sampling, from exact positions; `from` is the position
  // without the axes from D on.
  template <int D = 0, class Add>
  __device__ void visit_exactly(const Sampling& call, const Grid<DIMS>& grid, const double* matrix,
                                const Box<DIMS>& box, const double (&from)[DIMS], int64_t index,
                                const Add& add) const {
    int begin = box.begin[D], end = box.end[D];
    if (D == DIMS - 1 && finite) narrow(grid, call.border, matrix, box, from, begin, end);
#pragma unroll 1
    for (int o = begin; o <= end; ++o) {
      double x[DIMS];
#pragma unroll
      for (int a = 0; a < DIMS; ++a) {
        x[a] = multiply_add(from[a], matrix[a * (DIMS + 1) + D], static_cast<double>(o));
      }
      if constexpr (D == DIMS - 1) {
        add(weight_of(call, grid, x, box.voxel), index + o);
      } else {
        visit_exactly<D + 1>(call, grid, matrix, box, x, (index + o) * grid.size[D + 1], add);
      }
    }
  }

  // The part of a row that falls near the image voxel, so that a singular matrix costs no more than
  // its rows.
  __device__ void narrow(const Grid<DIMS>& grid, Border border, const double* matrix,
                         const Box<DIMS>& box, const double (&from)[DIMS], int& begin,
                         int& end) const {
    constexpr float near = 1 + 0x1p-8f;
    float low = static_cast<float>(begin), high = static_cast<float>(end);
#pragma unroll
    for (int a = 0; a < DIMS; ++a) {
      const float x = static_cast<float>(from[a] - static_cast<double>(box.voxel[a]));
      const bool open = border == Border::kClamp;
      const float below = open && box.voxel[a] == 0 ? -INFINITY : -near;
      const float above = open && box.voxel[a] == grid.n[a] - 1 ? INFINITY : near;
      const float along = static_cast<float>(matrix[a * (DIMS + 1) + DIMS - 1]);
      const float per_step = fabsf(along) < 1e-30f ? 1e30f : reciprocal(along);
      const float k0 = (below - x) * per_step, k1 = (above - x) * per_step;
      low = fmaxf(low, fminf(k0, k1) - slack[DIMS - 1]);
      high = fminf(high, fmaxf(k0, k1) + slack[DIMS - 1]);
    }
    clip(low, high, end + 1, begin, end);
  }
};

// CHANNELS at a time share their positions.
template <class In, int DIMS, int CHANNELS>
__global__ void __launch_bounds__(kThreads)
    gather_gradient(AffineSampleBackward call, Grid<DIMS> grid, Chunks chunks) {
  using T = Acc<In>;
  const Sampling& s = call.sampling;
  const int C = static_cast<int>(s.C);
  __shared__ Preimage<DIMS> preimage;
  for (int64_t n = blockIdx.x; n < chunks.total; n += gridDim.x) {
    const Chunk chunk(chunks, n);
    const double* matrix = voxel_matrix(s, grid, chunk.item);
    if (threadIdx.x == 0) preimage = Preimage<DIMS>(grid, matrix);
    __syncthreads();
    for (int64_t e = chunk.begin + threadIdx.x; e < chunk.end; e += kThreads) {
      Box<DIMS> box;
      bool exact = std::is_same_v<T, double> || s.mode != Mode::kLinear || !preimage.compact;
      int64_t rest = e;
#pragma unroll
      for (int a = DIMS - 1; a >= 0; --a) {
        const int64_t next = grid.image_along[a].divide(rest);
        const int voxel = static_cast<int>(rest - next * grid.n[a]);
        exact = exact || (s.border != Border::kZeros && (voxel == 0 || voxel == grid.n[a] - 1));
        box.voxel[a] = voxel;
        rest = next;
      }
      preimage.find(grid, s.border == Border::kClamp, box);
      float first[DIMS];
#pragma unroll
      for (int a = 0; a < DIMS; ++a) {
        double x = preimage.offset[a] - static_cast<double>(box.voxel[a]);
#pragma unroll
        for (int d = 0; d < DIMS; ++d) {
          x += matrix[a * (DIMS + 1) + d] * static_cast<double>(box.begin[d]);
        }
        first[a] = static_cast<float>(x);
      }
#pragma unroll 1
      for (int c = 0; c < C; c += CHANNELS) {
        const int64_t plane = chunk.item * s.C + c;
        const In* grad = static_cast<const In*>(call.grad) + plane * grid.out_numel;
        T sums[CHANNELS] = {};
        const auto add = [&](auto exact_weight, int64_t from) {
          const T weight = static_cast<T>(exact_weight);
          if (!(weight > 0)) return;
#pragma unroll
          for (int q = 0; q < CHANNELS; ++q) {
            if (q == 0 || c + q < C) {
              sums[q] += weight * to_real<T>(grad[from + q * grid.out_numel]);
            }
          }
        };
        if (exact) {
          preimage.visit_exactly(s, grid, matrix, box, preimage.offset, 0, add);
        } else if constexpr (std::is_same_v<T, float>) {
          preimage.visit(grid, box, first, 0, add);
        }
        In* to = static_cast<In*>(call.grad_images) + plane * grid.numel + e;
#pragma unroll
        for (int q = 0; q < CHANNELS; ++q) {
          if (q == 0 || c + q < C) to[q * grid.numel] = from_real<In>(sums[q]);
        }
      }
    }
  }
}

template <class In, int DIMS>
__global__ void __launch_bounds__(kThreads, 1)
    sum_matrix_gradient(AffineSampleBackward call, Grid<DIMS> grid, Chunks chunks) {
  using T = Acc<In>;
  constexpr int entries = Grid<DIMS>::entries, padded = DIMS == 2 ? 8 : 16;
  const Sampling& s = call.sampling;
  const int C = static_cast<int>(s.C);
  for (int64_t n = blockIdx.x; n < chunks.total; n += gridDim.x) {
    const Chunk chunk(chunks, n);
    const Run<DIMS>* runs = runs_of(s, grid, chunk);
    const In* images =
        in_register(static_cast<const In*>(call.images) + chunk.item * s.C * grid.numel);
    const In* grads = static_cast<const In*>(call.grad) + chunk.item * s.C * grid.out_numel;
    double sums[padded] = {};
    for (int r = threadIdx.x / 32; r < chunk.end - chunk.begin; r += kWarps) {
      const Run<DIMS>& run = runs[r];
      const Units<DIMS> units = run.units;
      const Range inside = kUnitsSuffice<T> ? units.inside : Range{0, 0};
      T sum[DIMS] = {}, moment[DIMS] = {};  // of gradients along the axes, and times k
      const auto add = [&](T grad, const T(&slope)[DIMS], int k) {
#pragma unroll
        for (int a = 0; a < DIMS; ++a) {
          sum[a] += grad * slope[a];
          moment[a] += grad * slope[a] * static_cast<T>(k);
        }
      };
      const auto sample_exactly = [&](int k) {
        double x[DIMS];
        run.position(k, x);
        const Taps<T, DIMS> taps(grid, x, s.border);
        const In* grad = grads + run.out + k;
#pragma unroll 1
        for (int c = 0; c < C && !taps.outside; ++c) {
          T slope[DIMS];
          taps.slopes(images + c * grid.numel, slope);
          add(to_real<T>(grad[c * grid.out_numel]), slope, k);
        }
      };
      if constexpr (kUnitsSuffice<T>) {
        int k = inside.begin + lane_of_warp();
        const In* voxel = grads + run.out + k;
        for (; k < inside.end; k += 32, voxel += 32) {
          const Cell<DIMS> cell(grid, units, k);
          const In *image = images, *grad = voxel;
          int c = 0;
#pragma unroll 1
          do {
            float slope[DIMS];
            cell.slopes(image + cell.index, slope);
            add(to_real<T>(*grad), slope, k);
            image += grid.numel;
            grad += grid.out_numel;
          } while (++c < C);
        }
      }
      for (int rest = lane_of_warp(); rest < run.count - inside.count(); rest += 32) {
        sample_exactly(inside.beyond(rest));
      }
#pragma unroll
      for (int a = 0; a < DIMS; ++a) {
        double* row = sums + a * (DIMS + 1);
#pragma unroll
        for (int d = 0; d < DIMS; ++d) row[d] += static_cast<double>(sum[a]) * run.at[d];
        row[DIMS - 1] += static_cast<double>(moment[a]) * grid.frame.axis[DIMS - 1].step;
        row[DIMS] += static_cast<double>(sum[a]);
      }
    }
    const double total = block_sums(sums);
    const int t = static_cast<int>(threadIdx.x), a = t / (DIMS + 1);
    if (t < entries) {
      call.partial[n * entries + grid.frame.index(a, t % (DIMS + 1))] =
          total * grid.frame.axis[a].half;
    }
  }
}

template <class In, int DIMS>
void launch_backward(const AffineSampleBackward& call, void* stream) {
  const Sampling& s = call.sampling;
  const Grid<DIMS> grid(s);
  const dim3 threads(kThreads);
  const Chunks voxels(s.B, grid.numel, kChunk);
  if (call.grad_images != nullptr && voxels.total * s.C > 0) {
    const dim3 blocks = blocks_for(voxels.total);
    constexpr int most = std::is_same_v<In, double> ? 1 : 4;  // doubles fill the registers
    if (s.C == 1) {
      CMRFAST_LAUNCH((gather_gradient<In, DIMS, 1>), blocks, threads, stream, call, grid, voxels);
    } else {
      CMRFAST_LAUNCH((gather_gradient<In, DIMS, most>), blocks, threads, stream, call, grid,
                     voxels);
    }
  }
  if (call.grad_matrix == nullptr || s.matrices == 0) return;
  const Chunks chunks = grid.chunks(s.B);
  if (chunks.total > 0) {
    CMRFAST_LAUNCH((sum_matrix_gradient<In, DIMS>), blocks_for(chunks.total), threads, stream, call,
                   grid, chunks);
  }
  const auto sum = [&](auto* to) {
    launch_sum_partials(call.partial, s.matrices, chunks.total / s.matrices, Grid<DIMS>::entries,
                        1.0, to, stream);
  };
  s.matrix_is_double ? sum(static_cast<double*>(call.grad_matrix))
                     : sum(static_cast<float*>(call.grad_matrix));
}

}  // namespace
}  // namespace cmrfast::cuda

using namespace cmrfast::cuda;

const char* cmrfast_affine_sample_backward(const AffineSampleBackward& call, void* stream) {
  with_floating(call.sampling.dtype, [&](auto zero) {
    using In = decltype(zero);
    call.sampling.dims == 2 ? launch_backward<In, 2>(call, stream)
                            : launch_backward<In, 3>(call, stream);
  });
  return launch_error();
}

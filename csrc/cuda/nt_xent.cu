// NT-Xent and both gradients without the similarity matrix in memory.
//
// Forward: a block multiplies a tile of anchors with all candidates, tile after tile, and each
// thread keeps a running maximum and sum of exponentials of its rows. Gradients: a block owns a
// tile of rows and columns of one gradient and recomputes the similarities along the other
// side. All sums are in a fixed order. Work: three matrix products, and one more per 64 columns
// beyond the first 64.
#include <limits>

#include "dtypes.cuh"

namespace cmrfast::cuda {
namespace {

constexpr int kSide = 16;   // threads along each side of a tile
constexpr int kDepth = 16;  // columns of both sides in shared memory at a time
static_assert(kSide * kSide == kThreads);

// Each thread computes kSpan x kSpan entries of a tile of kTile x kTile.
template <class T>
constexpr int kSpan = sizeof(T) == 8 ? 2 : 4;
template <class T>
constexpr int kTile = kSide * kSpan<T>;

// Unit rows and inverse norms, one warp per row. Rows are divided by their largest entry
// before squaring, so that rows of 1e18 or 1e-18 do not overflow. Zero rows stay zero.
template <class In, class T>
__global__ void __launch_bounds__(kThreads)
    normalise(const In* rows, int64_t count, int64_t D, T* unit, T* inverse_norm) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads / 32) + threadIdx.x / 32; i < count;
       i += step) {
    const In* row = rows + i * D;
    T largest = 0;
    for (int64_t d = lane_of_warp(); d < D; d += 32) {
      const T size = fabs(to_real<T>(row[d]));
      largest = size > largest || size != size ? size : largest;
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes >>= 1) {
      const T other = __shfl_xor_sync(kWholeWarp, largest, lanes);
      largest = other > largest || other != other ? other : largest;
    }
    double squares = 0;
    for (int64_t d = lane_of_warp(); d < D && largest != 0; d += 32) {
      const double scaled = to_real<double>(row[d]) / static_cast<double>(largest);
      squares += scaled * scaled;
    }
    const double length = sqrt(warp_sum(squares));
    for (int64_t d = lane_of_warp(); d < D; d += 32) {
      const double scaled = to_real<double>(row[d]) / static_cast<double>(largest);
      unit[i * D + d] = largest == 0 ? T{0} : static_cast<T>(scaled / length);
    }
    if (lane_of_warp() == 0) {
      inverse_norm[i] =
          largest == 0 ? T{0} : static_cast<T>(1 / (length * static_cast<double>(largest)));
    }
  }
}

// A tile of rows . columns^T, kSpan x kSpan entries per thread: rows kSpan * (t / 16) + r, columns
// kSpan * (t % 16) + c. Rows beyond the end are zero.
template <class T>
struct Product {
  static constexpr int span = kSpan<T>, tile = kTile<T>;
  T value[span][span];

  __device__ void multiply(const T* rows, int64_t row, int64_t row_count, const T* columns,
                           int64_t column, int64_t column_count, int64_t D) {
    __shared__ T a[kDepth][tile + 1], b[kDepth][tile + 1];
    const int t = static_cast<int>(threadIdx.x), down = t / kSide, right = t % kSide;
#pragma unroll
    for (int r = 0; r < span; ++r) {
#pragma unroll
      for (int c = 0; c < span; ++c) value[r][c] = 0;
    }
    for (int64_t depth = 0; depth < D; depth += kDepth) {
      __syncthreads();  // the tiles of the last iteration may still be read
#pragma unroll
      for (int x = 0; x < span; ++x) {
        const int at = t / kDepth + x * kSide, d = t % kDepth;
        const bool inside = depth + d < D;
        a[d][at] = inside && row + at < row_count ? rows[(row + at) * D + depth + d] : T{0};
        b[d][at] =
            inside && column + at < column_count ? columns[(column + at) * D + depth + d] : T{0};
      }
      __syncthreads();
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        T left[span], right_values[span];
#pragma unroll
        for (int x = 0; x < span; ++x) {
          left[x] = a[d][down * span + x];
          right_values[x] = b[d][right * span + x];
        }
#pragma unroll
        for (int r = 0; r < span; ++r) {
#pragma unroll
          for (int c = 0; c < span; ++c) value[r][c] += left[r] * right_values[c];
        }
      }
    }
  }
};

// The running maximum and sum of exp(x - maximum) of one row.
template <class T>
struct Exponentials {
  T max = -std::numeric_limits<T>::infinity(), sum = 0;

  __device__ void add(T x) {
    if (!(x <= max)) {  // larger, or NaN
      sum = sum * exp_of(max - x) + 1;
      max = x;
    } else {
      sum += exp_of(x - max);
    }
  }
  __device__ void add(T other_max, T other_sum) {
    if (other_sum == 0) return;
    const T larger = other_max > max || other_max != other_max ? other_max : max;
    sum = (sum == 0 ? T{0} : sum * exp_of(max - larger)) + other_sum * exp_of(other_max - larger);
    max = larger;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) losses(NtXent call) {
  constexpr int span = kSpan<T>, tile = kTile<T>;
  const T factor = static_cast<T>(1 / call.temperature);
  const int down = static_cast<int>(threadIdx.x) / kSide, right = threadIdx.x % kSide;
  for (int64_t row = blockIdx.x * int64_t{tile}; row < call.N; row += gridDim.x * int64_t{tile}) {
    Exponentials<T> rows[span];
    T positive[span];
    int64_t target[span];
#pragma unroll
    for (int r = 0; r < span; ++r) {
      const int64_t i = row + down * span + r;
      target[r] = i < call.N ? call.targets[i] : -1;
      positive[r] = 0;
    }
    for (int64_t column = 0; column < call.M; column += tile) {
      Product<T> product;
      product.multiply(static_cast<const T*>(call.unit_anchors), row, call.N,
                       static_cast<const T*>(call.unit_candidates), column, call.M, call.D);
#pragma unroll
      for (int r = 0; r < span; ++r) {
#pragma unroll
        for (int c = 0; c < span; ++c) {
          const int64_t j = column + right * span + c;
          if (j >= call.M) continue;
          const T x = product.value[r][c] * factor;
          rows[r].add(x);
          if (j == target[r]) positive[r] = x;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < span; ++r) {
      // The sixteen threads of a row are neighbours in a warp; the first of them stores the result.
#pragma unroll
      for (int lanes = kSide / 2; lanes > 0; lanes >>= 1) {
        const T max = __shfl_xor_sync(kWholeWarp, rows[r].max, lanes);
        const T sum = __shfl_xor_sync(kWholeWarp, rows[r].sum, lanes);
        rows[r].add(max, sum);
        positive[r] += __shfl_xor_sync(kWholeWarp, positive[r], lanes);
      }
      const int64_t i = row + down * span + r;
      if (right != 0 || i >= call.N) continue;
      const bool valid = target[r] >= 0 && target[r] < call.M;
      static_cast<T*>(call.row_max)[i] = rows[r].max;
      static_cast<T*>(call.row_sum)[i] = rows[r].sum;
      call.losses[i] =
          valid ? log(static_cast<double>(rows[r].sum)) +
                      (static_cast<double>(rows[r].max) - static_cast<double>(positive[r]))
                : static_cast<double>(NAN);
    }
  }
}

// The gradient of the unit rows: G (or G^T for the candidates) times the other side, where
// G[i, j] = d loss / d similarity[i, j] = (p[i, j] - [j is i's target]) / (temperature N).
template <class T, bool ANCHORS>
__global__ void __launch_bounds__(kThreads) gradients(NtXent call, T* out) {
  constexpr int span = kSpan<T>, tile = kTile<T>;
  __shared__ T tile_grad[tile][tile + 1], other[kDepth][tile + 1];
  const T* rows = static_cast<const T*>(ANCHORS ? call.unit_anchors : call.unit_candidates);
  const T* columns = static_cast<const T*>(ANCHORS ? call.unit_candidates : call.unit_anchors);
  const int64_t row_count = ANCHORS ? call.N : call.M, column_count = ANCHORS ? call.M : call.N;
  const T factor = static_cast<T>(1 / call.temperature);
  const T scale = static_cast<T>(1 / (call.temperature * static_cast<double>(call.N)));
  const int t = static_cast<int>(threadIdx.x), down = t / kSide, right = t % kSide;
  const auto similarity_grad = [&](T x, int64_t i, int64_t j) {
    const int64_t target = call.targets[i];
    if (target < 0 || target >= call.M) return static_cast<T>(NAN);
    const T max = static_cast<const T*>(call.row_max)[i],
            sum = static_cast<const T*>(call.row_sum)[i];
    return scale * (exp_of(x * factor - max) / sum - static_cast<T>(j == target));
  };
  const int64_t first = blockIdx.y * int64_t{tile};  // columns of the gradient
  for (int64_t row = blockIdx.x * int64_t{tile}; row < row_count;
       row += gridDim.x * int64_t{tile}) {
    T sum[span][span] = {};
    for (int64_t column = 0; column < column_count; column += tile) {
      Product<T> product;
      product.multiply(rows, row, row_count, columns, column, column_count, call.D);
#pragma unroll
      for (int r = 0; r < span; ++r) {
#pragma unroll
        for (int c = 0; c < span; ++c) {
          const int64_t i = row + down * span + r, j = column + right * span + c;
          T value = 0;
          if (i < row_count && j < column_count) {
            value = ANCHORS ? similarity_grad(product.value[r][c], i, j)
                            : similarity_grad(product.value[r][c], j, i);
          }
          tile_grad[down * span + r][right * span + c] = value;
        }
      }
      for (int depth = 0; depth < tile; depth += kDepth) {
        __syncthreads();
        for (int at = t; at < kDepth * tile; at += kThreads) {
          const int64_t j = column + depth + at / tile, d = first + at % tile;
          other[at / tile][at % tile] =
              j < column_count && d < call.D ? columns[j * call.D + d] : T{0};
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < kDepth; ++k) {
#pragma unroll
          for (int r = 0; r < span; ++r) {
#pragma unroll
            for (int c = 0; c < span; ++c) {
              sum[r][c] += tile_grad[down * span + r][depth + k] * other[k][right * span + c];
            }
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < span; ++r) {
#pragma unroll
      for (int c = 0; c < span; ++c) {
        const int64_t i = row + down * span + r, d = first + right * span + c;
        if (i < row_count && d < call.D) out[i * call.D + d] = sum[r][c];
      }
    }
  }
}

// The gradient of a row from that of its unit row, in place; one warp per row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    normalise_backward(const T* unit, const T* inverse_norm, int64_t count, int64_t D,
                       T* gradient) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads / 32) + threadIdx.x / 32; i < count;
       i += step) {
    double projection = 0;
    for (int64_t d = lane_of_warp(); d < D; d += 32) {
      projection += static_cast<double>(unit[i * D + d]) * static_cast<double>(gradient[i * D + d]);
    }
    projection = warp_sum(projection);
    for (int64_t d = lane_of_warp(); d < D; d += 32) {
      T* to = gradient + i * D + d;
      *to = static_cast<T>(
          (static_cast<double>(*to) - projection * static_cast<double>(unit[i * D + d])) *
          static_cast<double>(inverse_norm[i]));
    }
  }
}

template <class In>
void launch(const NtXent& call, void* stream) {
  using T = Acc<In>;
  const dim3 threads(kThreads);
  const auto warps = [](int64_t rows) { return blocks_for(ceil_div(rows, kThreads / 32)); };
  const auto tiles = [](int64_t rows) { return ceil_div(rows, kTile<T>); };
  T* units[2] = {static_cast<T*>(call.unit_anchors), static_cast<T*>(call.unit_candidates)};
  T* inverse_norms[2] = {static_cast<T*>(call.anchor_inverse_norm),
                         static_cast<T*>(call.candidate_inverse_norm)};
  T* grads[2] = {static_cast<T*>(call.grad_anchors), static_cast<T*>(call.grad_candidates)};
  const int64_t counts[2] = {call.N, call.M};
  CMRFAST_LAUNCH((normalise<In, T>), warps(call.M), threads, stream,
                 static_cast<const In*>(call.candidates), call.M, call.D, units[1],
                 inverse_norms[1]);
  if (call.N > 0) {
    CMRFAST_LAUNCH((normalise<In, T>), warps(call.N), threads, stream,
                   static_cast<const In*>(call.anchors), call.N, call.D, units[0],
                   inverse_norms[0]);
    CMRFAST_LAUNCH(losses<T>, blocks_for(tiles(call.N)), threads, stream, call);
  }
  launch_sum_partials(call.losses, 1, call.N, 1, 1 / static_cast<double>(call.N),
                      static_cast<T*>(call.loss), stream);
  for (int side = 0; side < 2; ++side) {
    if (grads[side] == nullptr || counts[side] == 0) continue;
    dim3 blocks = blocks_for(tiles(counts[side]));
    blocks.y = static_cast<unsigned>(tiles(call.D));
    if (side == 0) {
      CMRFAST_LAUNCH((gradients<T, true>), blocks, threads, stream, call, grads[side]);
    } else {
      CMRFAST_LAUNCH((gradients<T, false>), blocks, threads, stream, call, grads[side]);
    }
    CMRFAST_LAUNCH(normalise_backward<T>, warps(counts[side]), threads, stream, units[side],
                   inverse_norms[side], counts[side], call.D, grads[side]);
  }
}

}  // namespace
}  // namespace cmrfast::cuda

using namespace cmrfast::cuda;

const char* cmrfast_nt_xent(const NtXent& call, void* stream) {
  with_floating(call.dtype, [&](auto zero) { launch<decltype(zero)>(call, stream); });
  return launch_error();
}

// NT-Xent and both gradients in one pass over blocks of rows of the similarity matrix.
//
// The similarities of a block of anchors with all candidates are computed and, while they are in
// cache, turned into losses and into d loss / d similarity, which gives both gradients: three
// matrix products, and a buffer of block x M instead of N x M. Within a block each number is
// computed by one task in a fixed order, and blocks run one after the other, so the result does not
// depend on the number of threads.
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "common.h"
#include "matmul.h"
#include "simd_math.h"

namespace cmrfast::cpu {
namespace {

constexpr int64_t kBlock = 72;    // anchors per block
constexpr int64_t kStrip = 24;    // anchors per task, for the anchors' gradient
constexpr int64_t kColumns = 96;  // candidates per task, for everything else
constexpr int64_t kDepth = 256;   // candidates summed before the next tile, to stay in cache

// Allocates large buffers with mmap: freed, their pages go back to the system at once. In the heap
// they would leave gaps that small allocations fill, and each backward pass would grow the process.
template <class T>
struct Pages {
  using value_type = T;
  static constexpr size_t large = 1 << 20;  // bytes; smaller buffers come from the heap

  T* allocate(size_t count) {
#if defined(__linux__)
    if (count * sizeof(T) >= large) {
      void* at = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (at == MAP_FAILED) throw std::bad_alloc();
      return static_cast<T*>(at);
    }
#endif
    return std::allocator<T>().allocate(count);
  }
  void deallocate(T* at, size_t count) {
#if defined(__linux__)
    if (count * sizeof(T) >= large) {
      munmap(at, count * sizeof(T));
      return;
    }
#endif
    std::allocator<T>().deallocate(at, count);
  }
  friend bool operator==(Pages, Pages) { return true; }
};

template <class T>
using Buffer = std::vector<T, Pages<T>>;

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Rows normalised to length one, padded so that tiles may read past the end and rows do not share
// cache sets.
template <class T>
struct UnitRows {
  int64_t count, D, stride;
  Buffer<T> data;
  std::vector<double> inverse_norm;  // 0 for a zero row, which stays zero

  UnitRows(int64_t count, int64_t D)
      : count(count),
        D(D),
        stride(round_up(D, Tile<T>::cols) + Tile<T>::cols),
        data(static_cast<size_t>(count * stride)),
        inverse_norm(static_cast<size_t>(count)) {}

  T* row(int64_t i) { return data.data() + i * stride; }

  void normalise(int64_t i, const T* from) {
    // Squares of floats neither overflow nor vanish in double. Doubles are divided by the largest
    // first, so that rows of 1e180 or 1e-180 do not either.
    double largest = 1;
    if constexpr (std::is_same_v<T, double>) {
      largest = 0;
      for (int64_t d = 0; d < D; ++d) {
        const double size = std::abs(from[d]);
        largest = size > largest || size != size ? size : largest;
      }
    }
    const auto scaled = [&](int64_t d) {
      const auto value = static_cast<double>(from[d]);
      return std::is_same_v<T, double> ? value / largest : value;
    };
    double squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t d = 0; d < D; ++d) squares += scaled(d) * scaled(d);
    const bool zero = largest == 0 || squares == 0;
    const double length = std::sqrt(squares) * largest;
    // A subnormal length is inexact and its inverse infinite, which times a zero would be NaN.
    using Limits = std::numeric_limits<double>;
    const double inverse =
        length < Limits::min() ? 1.0 / std::sqrt(squares) / largest : 1.0 / length;
    inverse_norm[i] = zero ? 0.0 : std::min(inverse, Limits::max());
    const double factor =
        squares == Limits::infinity() ? Limits::quiet_NaN() : 1.0 / std::sqrt(squares);
    T* to = row(i);
#pragma omp simd
    for (int64_t d = 0; d < D; ++d) to[d] = zero ? T{0} : static_cast<T>(scaled(d) * factor);
  }

  // The gradient of a row from that of its unit row, in place.
  void backward(int64_t i, T* gradient) {
    const T* unit = row(i);
    const double factor = inverse_norm[i];
    double projection = 0;
#pragma omp simd reduction(+ : projection)
    for (int64_t d = 0; d < D; ++d) projection += static_cast<double>(unit[d]) * gradient[d];
#pragma omp simd
    for (int64_t d = 0; d < D; ++d) {
      gradient[d] = static_cast<T>((gradient[d] - projection * unit[d]) * factor);
    }
  }
};

template <class T>
struct Sweep {
  int64_t N, M, D;
  double inverse_temperature;
  std::optional<int64_t> first_candidate;  // the first anchor's place among the candidates, if any
  bool gradients;
  const T* anchors;
  const int64_t* targets;
  UnitRows<T> candidates;
  UnitRows<T> block;
  Buffer<T> columns;     // the candidates once more, in tiles of columns
  int64_t stride;        // of the rows of `similarity`
  Buffer<T> similarity;  // (kBlock, M), then d loss / d similarity
  std::vector<double> losses;

  Sweep(int64_t N, int64_t M, int64_t D, double temperature, std::optional<int64_t> first_candidate,
        bool gradients, const T* anchors, const T* raw_candidates, const int64_t* targets)
      : N(N),
        M(M),
        D(D),
        inverse_temperature(1 / temperature),
        first_candidate(first_candidate),
        gradients(gradients),
        anchors(anchors),
        targets(targets),
        candidates(M, D),
        block(std::min(N, kBlock), D),
        columns(static_cast<size_t>(round_up(M, Tile<T>::cols) * D)),
        stride(round_up(M, Tile<T>::cols) + Tile<T>::cols),
        similarity(static_cast<size_t>(std::min(N, kBlock) * stride)),
        losses(static_cast<size_t>(N)) {
    for_each_task((M + kColumns - 1) / kColumns, [&](int64_t task) {
      for (int64_t j = task * kColumns; j < std::min(M, (task + 1) * kColumns); ++j) {
        candidates.normalise(j, raw_candidates + j * D);
        T* to = columns.data() + j / Tile<T>::cols * Tile<T>::cols * D + j % Tile<T>::cols;
        for (int64_t d = 0; d < D; ++d) to[d * Tile<T>::cols] = candidates.row(j)[d];
      }
    });
  }

  void multiply(int64_t rows, int64_t begin, int64_t end) {
    for (int64_t i = 0; i < rows; i += Tile<T>::rows) {
      for (int64_t j = begin; j < end; j += Tile<T>::cols) {
        multiply_tile<T>(std::min<int64_t>(Tile<T>::rows, rows - i), D,
                         {block.row(i), block.stride, 1}, columns.data() + j * D, Tile<T>::cols,
                         similarity.data() + i * stride + j, stride, Tile<T>::cols, false);
      }
    }
  }

  // The loss of row i of the block; the row becomes d loss / d similarity.
  void softmax_row(int64_t first, int64_t i) {
    T* row = similarity.data() + i * stride;
    const int64_t itself = first_candidate ? *first_candidate + first + i : -1;
    const bool excluded = itself >= 0 && itself < M;
    if (excluded) row[itself] = -std::numeric_limits<T>::infinity();
    const int64_t target = targets[first + i];
    const bool valid = target >= 0 && target < M;
    const T positive = valid ? row[target] : std::numeric_limits<T>::quiet_NaN();
    T max = row[0];
#pragma omp simd reduction(max : max)
    for (int64_t j = 0; j < M; ++j) max = row[j] > max ? row[j] : max;
    const T factor = static_cast<T>(inverse_temperature);
    // The terms at the maximum are exactly 1. Counted apart, they do not round off the others,
    // which are all that remains of the loss of a well separated pair.
    T at_max = 0, others = 0;
#pragma omp simd reduction(+ : at_max, others)
    for (int64_t j = 0; j < M; ++j) {
      const T below = row[j] - max;
      const T e = simd::exp_nonpositive(below * factor);
      row[j] = e;
      at_max += below == 0 ? T{1} : T{0};
      others += below == 0 ? T{0} : e;
    }
    const double sum = static_cast<double>(at_max) + others;
    losses[first + i] = std::log(sum) + (static_cast<double>(max) - positive) * inverse_temperature;
    if (!gradients) return;
    if (excluded) row[itself] = 0;
    const double scale = inverse_temperature / static_cast<double>(N);
    const T weight = valid ? static_cast<T>(scale / sum) : std::numeric_limits<T>::quiet_NaN();
    for (int64_t j = 0; j < M; ++j) row[j] *= weight;
    if (valid) row[target] -= static_cast<T>(scale);
  }

  void gradient_of_anchors(int64_t first, int64_t begin, int64_t end, T* grad) {
    for (int64_t k = 0; k < M; k += kDepth) {
      for (int64_t d = 0; d < D; d += Tile<T>::cols) {
        for (int64_t i = begin; i < end; i += Tile<T>::rows) {
          multiply_tile<T>(std::min<int64_t>(Tile<T>::rows, end - i), std::min(kDepth, M - k),
                           {similarity.data() + i * stride + k, stride, 1}, candidates.row(k) + d,
                           candidates.stride, grad + (first + i) * D + d, D,
                           std::min<int64_t>(Tile<T>::cols, D - d), k > 0);
        }
      }
    }
    for (int64_t i = begin; i < end; ++i) block.backward(i, grad + (first + i) * D);
  }

  void gradient_of_candidates(int64_t rows, int64_t begin, int64_t end, bool accumulate, T* grad) {
    // A column of the similarity matrix touches one memory page per row: copy the columns first.
    const int64_t width = end - begin;
    T block_grad[kBlock * kColumns];
    for (int64_t i = 0; i < rows; ++i) {
      const T* from = similarity.data() + i * stride + begin;
      std::copy(from, from + width, block_grad + i * kColumns);
    }
    for (int64_t d = 0; d < D; d += Tile<T>::cols) {
      for (int64_t j = 0; j < width; j += Tile<T>::rows) {
        multiply_tile<T>(std::min<int64_t>(Tile<T>::rows, width - j), rows,
                         {block_grad + j, 1, kColumns}, block.row(0) + d, block.stride,
                         grad + (begin + j) * D + d, D, std::min<int64_t>(Tile<T>::cols, D - d),
                         accumulate);
      }
    }
  }

  double run(T* grad_anchors, T* grad_candidates) {
    const int64_t column_tasks = (M + kColumns - 1) / kColumns;
    for (int64_t first = 0; first < N; first += kBlock) {
      const int64_t rows = std::min(kBlock, N - first);
      for (int64_t i = 0; i < rows; ++i) block.normalise(i, anchors + (first + i) * D);
      for_each_task(column_tasks, [&](int64_t task) {
        multiply(rows, task * kColumns, std::min(M, (task + 1) * kColumns));
      });
      for_each_task(rows, [&](int64_t i) { softmax_row(first, i); });
      if (!gradients) continue;
      const int64_t strips = (rows + kStrip - 1) / kStrip;
      for_each_task(strips + column_tasks, [&](int64_t task) {
        if (task < strips) {
          gradient_of_anchors(first, task * kStrip, std::min(rows, (task + 1) * kStrip),
                              grad_anchors);
        } else {
          const int64_t begin = (task - strips) * kColumns;
          gradient_of_candidates(rows, begin, std::min(M, begin + kColumns), first > 0,
                                 grad_candidates);
        }
      });
    }
    if (gradients) {
      for_each_task(column_tasks, [&](int64_t task) {
        for (int64_t j = task * kColumns; j < std::min(M, (task + 1) * kColumns); ++j) {
          candidates.backward(j, grad_candidates + j * D);
        }
      });
    }
    double total = 0;
    for (const double loss : losses) total += loss;
    return total / static_cast<double>(N);
  }
};

std::tuple<Tensor, Tensor, Tensor> nt_xent(const Tensor& anchors_any, const Tensor& candidates_any,
                                           const Tensor& targets_any, double temperature,
                                           std::optional<int64_t> first, bool gradients) {
  const Tensor anchors = torch::stable::contiguous(anchors_any);
  const Tensor candidates = torch::stable::contiguous(candidates_any);
  const Tensor targets = torch::stable::contiguous(targets_any);
  const int64_t N = anchors.size(0), M = candidates.size(0), D = anchors.size(1);
  const ScalarType dtype = anchors.scalar_type();
  STD_TORCH_CHECK(candidates.size(1) == D && targets.numel() == N && M > 0 &&
                      candidates.scalar_type() == dtype &&
                      targets.scalar_type() == ScalarType::Long,
                  "nt_xent: anchors, candidates and targets do not fit one another");
  Tensor loss = fresh(anchors, {}, dtype);
  Tensor grad_anchors = fresh(anchors, {gradients ? N : 0, D}, dtype);
  Tensor grad_candidates = fresh(anchors, {gradients ? M : 0, D}, dtype);
  with_real("nt_xent: anchors", dtype, [&](auto zero) {
    using T = decltype(zero);
    if (N == 0 && gradients) std::fill_n(write<T>(grad_candidates), M * D, T{0});
    Sweep<T> sweep(N, M, D, temperature, first, gradients, read<T>(anchors), read<T>(candidates),
                   read<int64_t>(targets));
    *write<T>(loss) = static_cast<T>(sweep.run(write<T>(grad_anchors), write<T>(grad_candidates)));
  });
  return {loss, grad_anchors, grad_candidates};
}

}  // namespace
}  // namespace cmrfast::cpu

STABLE_TORCH_LIBRARY_IMPL(cmrfast, CPU, m) { m.impl("nt_xent", TORCH_BOX(&cmrfast::cpu::nt_xent)); }

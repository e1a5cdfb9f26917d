// A register-tiled matrix product with any strides, equal to the bit for every number of threads.
//
// torch.matmul may split its sums by the number of threads; here one task sums a tile of C over k,
// in order.
#pragma once

#include <cstdint>
#include <cstring>

namespace cmrfast::cpu {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Tile {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  static constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(T));
  static constexpr int rows = 6;  // 6 x 2 accumulators, 2 vectors of B, 1 of A: 15 registers
  static constexpr int cols = 2 * lanes;

  static Vector load(const T* from) {
    Vector value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
};

template <class T>
using Vector = typename Tile<T>::Vector;

// A strided matrix: element (row, column) is at row * rs + column * cs.
template <class T>
struct View {
  const T* data;
  int64_t rs, cs;
};

template <class T, int ROWS>
void multiply_tile(int64_t K, View<T> a, const T* b, int64_t b_stride, T* c, int64_t c_stride,
                   int64_t cols, bool accumulate) {
  using V = typename Tile<T>::Vector;
  constexpr int lanes = Tile<T>::lanes;
  V sum[ROWS][2];
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; ++r) sum[r][0] = sum[r][1] = V{};
  for (int64_t k = 0; k < K; ++k) {
    const V b0 = Tile<T>::load(b + k * b_stride);
    const V b1 = Tile<T>::load(b + k * b_stride + lanes);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r) {
      const T value = a.data[r * a.rs + k * a.cs];
      sum[r][0] += value * b0;
      sum[r][1] += value * b1;
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; ++r) {
    T* to = c + r * c_stride;
    if (cols == 2 * lanes) {
      if (accumulate) {
        sum[r][0] += Tile<T>::load(to);
        sum[r][1] += Tile<T>::load(to + lanes);
      }
      std::memcpy(to, sum[r], sizeof(sum[r]));
    } else {
      T row[2 * lanes];
      std::memcpy(row, sum[r], sizeof(row));
      for (int64_t j = 0; j < cols; ++j) to[j] = accumulate ? to[j] + row[j] : row[j];
    }
  }
}

// C (rows x cols, at most one tile) = or += A (rows x K) B (K x cols). Each row of B must be
// readable for a whole tile's width.
template <class T>
void multiply_tile(int64_t rows, int64_t K, View<T> a, const T* b, int64_t b_stride, T* c,
                   int64_t c_stride, int64_t cols, bool accumulate) {
  switch (rows) {
    case 6:
      return multiply_tile<T, 6>(K, a, b, b_stride, c, c_stride, cols, accumulate);
    case 5:
      return multiply_tile<T, 5>(K, a, b, b_stride, c, c_stride, cols, accumulate);
    case 4:
      return multiply_tile<T, 4>(K, a, b, b_stride, c, c_stride, cols, accumulate);
    case 3:
      return multiply_tile<T, 3>(K, a, b, b_stride, c, c_stride, cols, accumulate);
    case 2:
      return multiply_tile<T, 2>(K, a, b, b_stride, c, c_stride, cols, accumulate);
    default:
      return multiply_tile<T, 1>(K, a, b, b_stride, c, c_stride, cols, accumulate);
  }
}

}  // namespace cmrfast::cpu

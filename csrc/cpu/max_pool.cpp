// The largest of every 2 x 2 pixels or 2 x 2 x 2 voxels, and the gradient, which goes to that one.
//
// A task has one plane of outputs. Minimum traffic: input and output once; the gradient reads the
// input again, where PyTorch stores an index of eight bytes for each output.
#include <type_traits>

#include "common.h"

namespace cmrfast::cpu {
namespace {

// Images (B, C, H, W) or (B, C, D, H, W) as planes; a block of the input has `depth` of them.
struct Blocks {
  int64_t images, D, H, W, depth;

  explicit Blocks(const Tensor& x)
      : images(x.size(0) * x.size(1)),
        D(x.dim() == 5 ? x.size(2) : 1),
        H(x.size(x.dim() - 2)),
        W(x.size(x.dim() - 1)),
        depth(x.dim() == 5 ? 2 : 1) {}

  int64_t planes() const { return D / depth; }  // of outputs, in an image
  int64_t rows() const { return H / 2; }
  int64_t columns() const { return W / 2; }
  int64_t size() const { return planes() * rows() * columns(); }
  // The first row of the input under a row of outputs.
  int64_t first(int64_t plane, int64_t row) const {
    return ((plane / planes() * D + plane % planes() * depth) * H + 2 * row) * W;
  }
  // From it to row r of the 2 * depth rows under the same outputs.
  int64_t to_row(int r) const { return (r / 2 * H + r % 2) * W; }
};

// As in PyTorch, the first of equal values is the largest, and the last NaN.
template <class T>
bool is_larger(T value, T best) {
  return value > best || value != value;
}

template <int ROWS, class T>
void pool_row(const Blocks& b, const T* from, T* to) {
  for (int64_t k = 0; k < b.columns(); ++k) {
    T best = from[2 * k];
#pragma GCC unroll 8
    for (int i = 1; i < 2 * ROWS; ++i) {
      const T value = from[b.to_row(i / 2) + 2 * k + i % 2];
      best = is_larger(value, best) ? value : best;
    }
    to[k] = best;
  }
}

template <int ROWS, class T>
void scatter_row(const Blocks& b, const T* from, const T* grad, T* to) {
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;  // as wide, to vectorise
  constexpr int64_t some = 256;
  Index largest[some];
  for (int64_t first = 0; first < b.columns(); first += some) {
    const int64_t count = std::min(some, b.columns() - first);
    const T* voxels = from + 2 * first;
    for (int64_t k = 0; k < count; ++k) {
      T best = voxels[2 * k];
      Index at = 0;
#pragma GCC unroll 8
      for (int i = 1; i < 2 * ROWS; ++i) {
        const T value = voxels[b.to_row(i / 2) + 2 * k + i % 2];
        at = is_larger(value, best) ? i : at;
        best = is_larger(value, best) ? value : best;
      }
      largest[k] = at;
    }
    for (int r = 0; r < ROWS; ++r) {
      T* row = to + b.to_row(r) + 2 * first;
      for (int64_t k = 0; k < count; ++k) {
        const T value = grad[first + k];
        row[2 * k] = largest[k] == 2 * r ? value : T{0};
        row[2 * k + 1] = largest[k] == 2 * r + 1 ? value : T{0};
      }
    }
  }
}

// Calls body(offset of a row of the input, of the output) for all rows of outputs.
template <class Body>
void for_each_row(const Blocks& b, const Body& body) {
  for_each_task(b.images * b.planes(), [&](int64_t plane) {
    for (int64_t row = 0; row < b.rows(); ++row)
      body(b.first(plane, row), (plane * b.rows() + row) * b.columns());
  });
}

Tensor max_pool(const Tensor& x_any) {
  const Tensor x = torch::stable::contiguous(x_any);
  STD_TORCH_CHECK(x.dim() == 4 || x.dim() == 5, "max_pool: x must have 4 or 5 axes");
  const Blocks b(x);
  std::vector<int64_t> shape = {x.size(0), x.size(1), b.rows(), b.columns()};
  if (x.dim() == 5) shape.insert(shape.begin() + 2, b.planes());
  Tensor out = fresh(x, shape, x.scalar_type());
  with_real("max_pool: x", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    for_each_row(b, [&](int64_t from, int64_t to) {
      b.depth == 2 ? pool_row<4>(b, read<T>(x) + from, write<T>(out) + to)
                   : pool_row<2>(b, read<T>(x) + from, write<T>(out) + to);
    });
  });
  return out;
}

Tensor max_pool_backward(const Tensor& grad_any, const Tensor& x_any) {
  const Tensor grad = torch::stable::contiguous(grad_any);
  const Tensor x = torch::stable::contiguous(x_any);
  STD_TORCH_CHECK(x.dim() == 4 || x.dim() == 5, "max_pool_backward: x must have 4 or 5 axes");
  const Blocks b(x);
  STD_TORCH_CHECK(grad.numel() == b.images * b.size() && grad.scalar_type() == x.scalar_type(),
                  "max_pool_backward: arguments do not fit one another");
  const bool covered = b.D % b.depth == 0 && b.H % 2 == 0 && b.W % 2 == 0;
  std::vector<int64_t> shape;
  for (int64_t axis = 0; axis < x.dim(); ++axis) shape.push_back(x.size(axis));
  Tensor out = covered ? fresh(x, shape, x.scalar_type()) : torch::stable::new_zeros(x, shape);
  with_real("max_pool_backward: x", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    for_each_row(b, [&](int64_t from, int64_t to) {
      const T* image = read<T>(x) + from;
      const T* of = read<T>(grad) + to;
      b.depth == 2 ? scatter_row<4>(b, image, of, write<T>(out) + from)
                   : scatter_row<2>(b, image, of, write<T>(out) + from);
    });
  });
  return out;
}

}  // namespace
}  // namespace cmrfast::cpu

STABLE_TORCH_LIBRARY_IMPL(cmrfast, CPU, m) {
  m.impl("max_pool", TORCH_BOX(&cmrfast::cpu::max_pool));
  m.impl("max_pool_backward", TORCH_BOX(&cmrfast::cpu::max_pool_backward));
}

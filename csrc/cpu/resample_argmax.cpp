// Labels on another grid: the class whose interpolated logit is largest.
//
// A task makes some rows of labels. Class by class it interpolates each row as affine_sample does,
// to the same bits, and keeps the largest value and its class: no resampled logits in memory.
// Minimum traffic: logits and labels once.
#include <limits>
#include <type_traits>
#include <vector>

#include "half.h"
#include "sampling.h"
#include "separable.h"
#include "taps.h"

namespace cmrfast::cpu {
namespace {

// The largest value so far of some voxels, and its class; integers as wide as the values, so that
// both go through one vector loop.
template <class T>
struct Winners {
  using Label = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  std::vector<T> value;
  std::vector<Label> label;

  explicit Winners(int64_t count)
      : value(static_cast<size_t>(count), -std::numeric_limits<T>::infinity()),
        label(static_cast<size_t>(count)) {}

  // The first of equal values stays; NaN is larger than all others, as in torch.argmax.
  static void update(T& best, Label& label, T v, Label k) {
    const bool larger = !(v <= best) & (best == best);
    best = larger ? v : best;
    label = larger ? k : label;
  }
};

// Where labels go. Their dtype matters only here: the loops below are compiled once for all.
class Labels {
 public:
  template <class T>
  static Labels of(const Tensor& out, int64_t fill) {
    return {write<T>(out), fill, &store<T, int32_t>, &store<T, int64_t>, &repeat<T>};
  }

  void put(int64_t offset, const int32_t* from, int64_t count) const {
    narrow_(to_, offset, from, count);
  }
  void put(int64_t offset, const int64_t* from, int64_t count) const {
    wide_(to_, offset, from, count);
  }
  void put_fill(int64_t offset, int64_t count) const { fill_n_(to_, offset, fill_, count); }

 private:
  template <class T, class From>
  static void store(void* to, int64_t offset, const From* from, int64_t count) {
    T* labels = static_cast<T*>(to) + offset;
    for (int64_t k = 0; k < count; ++k) labels[k] = static_cast<T>(from[k]);
  }
  template <class T>
  static void repeat(void* to, int64_t offset, int64_t fill, int64_t count) {
    std::fill_n(static_cast<T*>(to) + offset, count, static_cast<T>(fill));
  }

  Labels(void* to, int64_t fill, void (*narrow)(void*, int64_t, const int32_t*, int64_t),
         void (*wide)(void*, int64_t, const int64_t*, int64_t),
         void (*fill_n)(void*, int64_t, int64_t, int64_t))
      : to_(to), fill_(fill), narrow_(narrow), wide_(wide), fill_n_(fill_n) {}

  void* to_;
  int64_t fill_;
  void (*narrow_)(void*, int64_t, const int32_t*, int64_t);
  void (*wide_)(void*, int64_t, const int64_t*, int64_t);
  void (*fill_n_)(void*, int64_t, int64_t, int64_t);
};

// The logits of an axis-aligned matrix, with their axes in the order of the output's. Strides serve
// any order without a copy.
template <class S>
struct Aligned {
  const S* logits;
  int64_t n[3], stride[3], class_stride;

  Aligned(const Tensor& given, const int64_t* source)
      : logits(read<S>(given)), class_stride(given.stride(0)) {
    for (int d = 0; d < 3; ++d) {
      n[d] = given.size(source[d] + 1);
      stride[d] = given.stride(source[d] + 1);
    }
  }
};

// The voxels [begin, end) of two rows of one class, one plane apart, blended; the last two results
// are kept, since the next output row mostly needs them again.
template <class S, class T>
class BlendedRows {
 public:
  BlendedRows(const Aligned<S>& from, int64_t begin, int64_t end)
      : from_(from), begin_(begin), end_(end) {
    for (auto& row : rows_) row.resize(static_cast<size_t>(end));
  }

  void start(int64_t k, int64_t plane, T fraction) {
    front_ = from_.logits + k * from_.class_stride + plane * from_.stride[0];
    back_ = front_ + (plane + 1 < from_.n[0] ? from_.stride[0] : 0);
    fraction_ = fraction;
    held_[0] = held_[1] = -1;
  }

  const T* row(int64_t j) {
    std::vector<T>& row = rows_[j % 2];
    if (held_[j % 2] == j) return row.data();
    held_[j % 2] = j;
    const int64_t offset = j * from_.stride[1], stride = from_.stride[2];
    if (stride == 1) {
      blend(front_ + offset, back_ + offset, std::integral_constant<int64_t, 1>{}, row.data());
    } else {
      blend(front_ + offset, back_ + offset, stride, row.data());
    }
    return row.data();
  }

 private:
  template <class Stride>
  void blend(const S* front, const S* back, Stride stride, T* to) const {
    const T fraction = fraction_;
    for (int64_t x = begin_; x < end_; ++x) {
      const T near = to_real(front[x * stride]);
      to[x] = near + fraction * (to_real(back[x * stride]) - near);
    }
  }

  const Aligned<S>& from_;
  const int64_t begin_, end_;
  std::vector<T> rows_[2];
  int64_t held_[2];
  const S *front_, *back_;
  T fraction_;
};

template <class S, class T>
void aligned(const Tensor& logits, const double* matrix, const int64_t* source, const int64_t* size,
             const Labels& out) {
  const Aligned<S> from(logits, source);
  const auto axis = [&](int d) {
    const double* m = matrix + source[d] * 4;
    return Axis<T>(m[3], m[d], size[d], from.n[d]);
  };
  const Axis<T> ai = axis(0), aj = axis(1), ak = axis(2);
  int64_t first = 0, last = size[2];  // the part of a row that is inside
  while (first < last && ak.cell[first] < 0) ++first;
  while (last > first && ak.cell[last - 1] < 0) --last;
  const int64_t count = last - first, K = logits.size(0);
  int64_t begin = 0, end = 0;  // the voxels of a row of logits that it needs
  if (count > 0) {
    const auto [low, high] = std::minmax(ak.cell[first], ak.cell[last - 1]);
    begin = low;
    end = std::min<int64_t>(high + 2, from.n[2]);
  }
  constexpr int64_t rows = 16;  // of a task: their winners stay in the first cache
  const int64_t groups = (size[1] + rows - 1) / rows;
  for_each_task(size[0] * groups, [&](int64_t task) {
    const int64_t i = task / groups, j0 = task % groups * rows, j1 = std::min(j0 + rows, size[1]);
    const int64_t to = (i * size[1] + j0) * size[2];
    if (ai.cell[i] < 0 || count == 0) return out.put_fill(to, (j1 - j0) * size[2]);
    Winners<T> winners(rows * count);
    BlendedRows<S, T> blended(from, begin, end);
    std::vector<T> row(static_cast<size_t>(end + 1));
    for (int64_t c = 0; c < K; ++c) {
      blended.start(c, ai.cell[i], ai.fraction[i]);
      for (int64_t j = j0; j < j1; ++j) {
        if (aj.cell[j] < 0) continue;
        const T* top = blended.row(aj.cell[j]);
        const T* low = aj.cell[j] + 1 < from.n[1] ? blended.row(aj.cell[j] + 1) : top;
        const T fj = aj.fraction[j];
        for (int64_t x = begin; x < end; ++x) row[x] = top[x] + fj * (low[x] - top[x]);
        row[end] = row[end - 1];
        const int32_t* cell = ak.cell.data() + first;
        const T* fraction = ak.fraction.data() + first;
        const T* values = row.data();
        T* best = winners.value.data() + (j - j0) * count;
        auto* label = winners.label.data() + (j - j0) * count;
        const auto k = static_cast<typename Winners<T>::Label>(c);
#pragma omp simd
        for (int64_t x = 0; x < count; ++x) {
          const T left = values[cell[x]];
          const T v = left + fraction[x] * (values[cell[x] + 1] - left);
          Winners<T>::update(best[x], label[x], v, k);
        }
      }
    }
    for (int64_t j = j0; j < j1; ++j) {
      const int64_t at = to + (j - j0) * size[2];
      if (aj.cell[j] < 0) {
        out.put_fill(at, size[2]);
        continue;
      }
      out.put_fill(at, first);
      out.put(at + first, winners.label.data() + (j - j0) * count, count);
      out.put_fill(at + last, size[2] - last);
    }
  });
}

// Any matrix: a task makes one row.
template <class S, class T, class Index, int DIMS>
void general(const Tensor& logits, const double* matrix, const int64_t* size, const Labels& out) {
  const Call<DIMS> call(torch::stable::unsqueeze(logits, 0), size,
                        static_cast<int64_t>(Mode::kLinear),
                        static_cast<int64_t>(Border::kClampHalf), 0);
  const Grid<DIMS> grid(call);
  const int64_t count = size[DIMS - 1];
  for_each_task(grid.rows, [&](int64_t task) {
    const Row<DIMS> row(matrix, grid, task);
    const auto [reached, inside] = row.parts(count);
    Winners<T> winners(count);
    using Class = typename Winners<T>::Label;
    const auto checked = [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const Corners<T, DIMS> corners(row, static_cast<double>(k));
        if (corners.outside) winners.label[k] = -1;
        for (int64_t c = 0; !corners.outside && c < call.C; ++c) {
          const T value = corners.value(read<S>(logits) + c * grid.numel);
          Winners<T>::update(winners.value[k], winners.label[k], value, static_cast<Class>(c));
        }
      }
    };
    checked(reached.begin, inside.begin);
    for (int64_t k = inside.begin; k < inside.end; k += kBlock) {
      const Taps<T, Index, DIMS> taps(row, k, std::min(kBlock, inside.end - k));
      T values[kBlock];
      T* best = winners.value.data() + k;
      Class* label = winners.label.data() + k;
      for (int64_t c = 0; c < call.C; ++c) {
        blend_block(read<S>(logits) + c * grid.numel, row, taps, values);
#pragma omp simd
        for (int64_t x = 0; x < taps.count; ++x) {
          Winners<T>::update(best[x], label[x], values[x], static_cast<Class>(c));
        }
      }
    }
    checked(inside.end, reached.end);
    const int64_t to = task * count;
    out.put_fill(to, reached.begin);
    out.put_fill(to + reached.end, count - reached.end);
    out.put(to + reached.begin, winners.label.data() + reached.begin, reached.end - reached.begin);
    for (int64_t k = reached.begin; k < reached.end; ++k) {
      if (winners.label[k] < 0) out.put_fill(to + k, 1);
    }
  });
}

template <class S>
void label(const Tensor& logits, const double* matrix, const int64_t* size, const Labels& out) {
  using T = decltype(to_real(S{}));
  int64_t source[3];
  if (logits.dim() == 4 && find_axes(matrix, source)) {
    return aligned<S, T>(logits, matrix, source, size, out);
  }
  const Tensor packed = torch::stable::contiguous(logits);
  const auto run = [&]<class Index>() {
    if (logits.dim() == 3) return general<S, T, Index, 2>(packed, matrix, size, out);
    general<S, T, Index, 3>(packed, matrix, size, out);
  };
  const bool small = logits.numel() / logits.size(0) < std::numeric_limits<int32_t>::max();
  small ? run.template operator()<int32_t>() : run.template operator()<int64_t>();
}

template <class Body>
void with_floating(ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Half:
      return body(torch::headeronly::Half{});
    case ScalarType::BFloat16:
      return body(torch::headeronly::BFloat16{});
    default:
      with_real("resample_argmax: logits", dtype, body);
  }
}

template <class Body>
void with_integer(ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Byte:
      return body(uint8_t{});
    case ScalarType::Char:
      return body(int8_t{});
    case ScalarType::Short:
      return body(int16_t{});
    case ScalarType::Int:
      return body(int32_t{});
    case ScalarType::Long:
      return body(int64_t{});
    default:
      STD_TORCH_CHECK(false, "resample_argmax: labels must have a signed integer dtype or uint8");
  }
}

Tensor resample_argmax(const Tensor& logits, const Tensor& matrix_any,
                       torch::headeronly::IntHeaderOnlyArrayRef size, int64_t fill,
                       ScalarType dtype) {
  const Tensor matrix = torch::stable::contiguous(matrix_any);
  const int64_t dims = logits.dim() - 1;
  STD_TORCH_CHECK((dims == 2 || dims == 3) && matrix.dim() == 2 && matrix.size(0) == dims &&
                      matrix.size(1) == dims + 1 && static_cast<int64_t>(size.size()) == dims &&
                      matrix.scalar_type() == ScalarType::Double && logits.numel() > 0,
                  "resample_argmax: logits, matrix and size do not fit one another");
  Tensor out = fresh(logits, size, dtype);
  with_integer(dtype, [&](auto zero) {
    const auto labels = Labels::of<decltype(zero)>(out, fill);
    with_floating(logits.scalar_type(), [&](auto value) {
      label<decltype(value)>(logits, read<double>(matrix), size.data(), labels);
    });
  });
  return out;
}

}  // namespace
}  // namespace cmrfast::cpu

STABLE_TORCH_LIBRARY_IMPL(cmrfast, CPU, m) {
  m.impl("resample_argmax", TORCH_BOX(&cmrfast::cpu::resample_argmax));
}

// Linear resampling with an axis-aligned matrix, one axis after the other.
#pragma once

#include <utility>
#include <vector>

#include "sampling.h"

namespace cmrfast::cpu {

// One axis: the voxel below each output position and the fraction beyond it; -1 outside.
template <class T>
struct Axis {
  std::vector<int32_t> cell;
  std::vector<T> fraction;
  Axis(double base, double step, int64_t count, int64_t n) : cell(count), fraction(count) {
    const double last = static_cast<double>(n - 1);
    for (int64_t k = 0; k < count; ++k) {
      const double x = base + step * static_cast<double>(k);
      const double clamped = std::clamp(x, 0.0, last);
      const double whole = std::floor(clamped);
      cell[k] = x >= -0.5 && x < last + 0.5 ? static_cast<int32_t>(whole) : -1;
      fraction[k] = static_cast<T>(clamped - whole);
    }
  }
};

// Whether each output axis d runs along one input axis, source[d], and no other.
inline bool find_axes(const double* matrix, int64_t* source) {
  bool used[3] = {};
  for (int a = 0; a < 3; ++a) {
    int only = -1;  // the column of the row's only nonzero entry
    for (int d = 0; d < 3; ++d) {
      if (matrix[a * 4 + d] == 0) continue;
      if (only >= 0 || used[d]) return false;
      only = d;
    }
    if (only < 0 || !std::isfinite(matrix[a * 4 + only]) || !std::isfinite(matrix[a * 4 + 3])) {
      return false;
    }
    used[only] = true;
    source[only] = a;
  }
  return true;
}

// Blends two planes into one, two rows of it into one, and interpolates only along the last axis.
// Returns false if the matrix is not axis-aligned or another mode or border was asked for.
template <class T>
bool separable(const Tensor& images, const double* matrix, const Call<3>& call, Tensor& out) {
  if (call.mode != Mode::kLinear || call.border != Border::kClampHalf || call.B != 1 ||
      images.numel() == 0)
    return false;
  int64_t source[3];
  if (!find_axes(matrix, source)) return false;
  Tensor image = images;
  int64_t order[3] = {0, 1, 2};
  for (int d = 0; d < 2; ++d) {  // move input axis source[d] to position d
    int at = d;
    while (order[at] != source[d]) ++at;
    if (at == d) continue;
    image = torch::stable::transpose(image, d + 2, at + 2);
    std::swap(order[d], order[at]);
  }
  image = torch::stable::contiguous(image);
  const int64_t I = image.size(2), J = image.size(3), K = image.size(4);
  const auto axis = [&](int d, int64_t n) {
    const double* m = matrix + source[d] * 4;
    return Axis<T>(m[3], m[d], call.size[d], n);
  };
  const Axis<T> ai = axis(0, I), aj = axis(1, J), ak = axis(2, K);
  int64_t first = 0, last = call.size[2];  // the part of a row that is inside
  while (first < last && ak.cell[first] < 0) ++first;
  while (last > first && ak.cell[last - 1] < 0) --last;
  const T fill = static_cast<T>(call.fill);
  const int64_t row_size = call.size[2], plane_size = call.size[1] * row_size;
  torch::stable::parallel_for(0, call.C * call.size[0], 1, [&](int64_t begin, int64_t end) {
    std::vector<T> plane(static_cast<size_t>(J * K)), row(static_cast<size_t>(K + 1));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t c = task / call.size[0], i = task % call.size[0];
      T* to = write<T>(out) + task * plane_size;
      if (ai.cell[i] < 0) {
        std::fill_n(to, plane_size, fill);
        continue;
      }
      const T* front = read<T>(image) + (c * I + ai.cell[i]) * J * K;
      const T* back = front + (ai.cell[i] + 1 < I ? J * K : 0);
      const T fi = ai.fraction[i];
      for (int64_t x = 0; x < J * K; ++x) plane[x] = front[x] + fi * (back[x] - front[x]);
      for (int64_t j = 0; j < call.size[1]; ++j, to += row_size) {
        if (aj.cell[j] < 0) {
          std::fill_n(to, row_size, fill);
          continue;
        }
        const T* top = plane.data() + aj.cell[j] * K;
        const T* low = top + (aj.cell[j] + 1 < J ? K : 0);
        const T fj = aj.fraction[j];
        for (int64_t x = 0; x < K; ++x) row[x] = top[x] + fj * (low[x] - top[x]);
        row[K] = row[K - 1];
        std::fill_n(to, first, fill);
        const int32_t* cell = ak.cell.data();
        const T* fraction = ak.fraction.data();
        const T* values = row.data();
#pragma omp simd
        for (int64_t k = first; k < last; ++k) {
          const T left = values[cell[k]];
          to[k] = left + fraction[k] * (values[cell[k] + 1] - left);
        }
        std::fill_n(to + last, row_size - last, fill);
      }
    }
  });
  return true;
}

}  // namespace cmrfast::cpu

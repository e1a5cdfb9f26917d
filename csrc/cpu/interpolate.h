// Interpolation between the voxels of a volume, whatever their dtype: four positions at a time
// where all taps are inside, and one by one where they must be checked.
#pragma once

#include "lines.h"
#include "voxels.h"

namespace cmrfast::cpu {

// What the rows of a patch are sampled from, channel by channel.
template <int DIMS>
struct Source {
  const Patch<DIMS>& patch;
  const char* voxels;           // of the first channel
  int64_t C, channel_bytes;     // channels, and the size of one
  const double *shift, *scale;  // of each channel, or null
  double fill;

  const char* image(int64_t c) const { return voxels + c * channel_bytes; }

  template <class Real>
  Real minus(int64_t c) const {
    return shift == nullptr ? Real{0} : static_cast<Real>(shift[c]);
  }
  template <class Real>
  Real times(int64_t c) const {
    return scale == nullptr ? Real{1} : static_cast<Real>(scale[c]);
  }
};

// The weights of the voxels around a position that is f beyond a voxel.
template <class Real>
void weigh(double, Real (&weight)[1]) {
  weight[0] = 1;
}
template <class Real>
void weigh(double f, Real (&weight)[2]) {
  weight[0] = static_cast<Real>(1 - f);
  weight[1] = static_cast<Real>(f);
}
template <class Real>
void weigh(double f, Real (&weight)[4]) {  // cubic convolution with a = -1/2
  weight[0] = static_cast<Real>(((2 - f) * f - 1) * f / 2);
  weight[1] = static_cast<Real>(((3 * f - 5) * f * f + 2) / 2);
  weight[2] = static_cast<Real>(((4 - 3 * f) * f + 1) * f / 2);
  weight[3] = static_cast<Real>((f - 1) * f * f / 2);
}

// The taps of one voxel, each with a check whether it is inside.
template <class Real, int DIMS, int TAPS>
struct Checked {
  int64_t first[3] = {};      // the voxel of the first tap
  Real weight[3][TAPS] = {};  // of two axes, the first is one voxel

  Checked(const Line<DIMS>& line, int64_t k) {
    weight[0][0] = 1;
    for (int a = 0; a < DIMS; ++a) {
      const double x = line.at(a, static_cast<double>(k) - line.center);
      const double cell = std::floor(x + Around<TAPS>::ahead);
      first[a + 3 - DIMS] = static_cast<int64_t>(cell) - Around<TAPS>::below;
      weigh(x - cell, weight[a + 3 - DIMS]);
    }
  }

  // Calls body(offset, weight) for each tap of nonzero weight; the offset is -1 for one that is not
  // among the voxels [begin[a], end[a]) of each axis.
  template <class Body>
  void each(const Patch<DIMS>& patch, const int64_t (&begin)[DIMS], const int64_t (&end)[DIMS],
            const Body& body) const {
    int64_t low[3] = {}, high[3] = {1, 1, 1}, stride[3] = {};
    for (int a = 0; a < DIMS; ++a) {
      low[a + 3 - DIMS] = begin[a];
      high[a + 3 - DIMS] = end[a];
      stride[a + 3 - DIMS] = patch.stride[a];
    }
    const auto in = [&](int a, int64_t i) { return i >= low[a] && i < high[a]; };
    for (int t0 = 0; t0 < TAPS; ++t0) {
      for (int t1 = 0; weight[0][t0] != 0 && t1 < TAPS; ++t1) {
        for (int t2 = 0; weight[1][t1] != 0 && t2 < TAPS; ++t2) {
          if (weight[2][t2] == 0) continue;
          const int64_t i = first[0] + t0, j = first[1] + t1, k = first[2] + t2;
          const bool counts = in(0, i) && in(1, j) && in(2, k);
          body(counts ? i * stride[0] + j * stride[1] + k * stride[2] : -1,
               weight[0][t0] * weight[1][t1] * weight[2][t2]);
        }
      }
    }
  }

  Real value(const Source<DIMS>& source, Real (*voxel)(const void*, int64_t), int64_t c) const {
    const char* image = source.image(c);
    const Real minus = source.template minus<Real>(c), times = source.template times<Real>(c);
    const Real fill = static_cast<Real>(source.fill);
    bool reached = false;
    Real sum = Real{-0.0};  // to which -0.0 can be added
    each(source.patch, source.patch.zero, source.patch.n, [&](int64_t at, Real weight) {
      reached |= at >= 0;
      sum += weight * (at < 0 ? fill : (voxel(image, at) - minus) * times);
    });
    return reached ? sum : fill;
  }
};

// Interpolates between a and b, of which b is not read where the fraction is 0: it may be NaN. With
// a weight for each, an infinite voxel gives what it gives in the other forms of the sum.
template <class From, class Real>
Four<Real> mix(Four<Real> a, Four<Real> b, Four<Real> fraction) {
  const Four<Real> mixed = (1 - fraction) * a + fraction * b;
  if constexpr (is_floating<From>) return fraction != 0 ? mixed : a;
  return mixed;
}

template <class From, class Real, int DIMS>
void linear_block(const void* channel, const Patch<DIMS>& patch, const Block<Real, DIMS>& block,
                  int64_t ahead, Real minus, Real times, Real* out) {
  const From* image = static_cast<const From*>(channel);
  for (int64_t k = 0; k < block.count; k += 4) {
    prefetch(image + block.index[k], ahead * static_cast<int64_t>(sizeof(From)), 1);
    const auto fraction_of = [&](int axis) { return load<Four<Real>>(block.fraction[axis] + k); };
    const Four<Real> right = fraction_of(DIMS - 1), down = fraction_of(DIMS - 2);
    const auto plane = [&](const From* at) {
      const Neighbours<Real, From> top(at, block.index + k);
      const Neighbours<Real, From> low(at + patch.stride[DIMS - 2], block.index + k);
      return mix<From, Real>(mix<From, Real>(top.left - minus, low.left - minus, down),
                             mix<From, Real>(top.right - minus, low.right - minus, down), right);
    };
    Four<Real> value = plane(image);
    if constexpr (DIMS == 3) {
      value = mix<From, Real>(value, plane(image + patch.stride[0]), fraction_of(0));
    }
    value *= times;
    std::memcpy(out + k, &value, sizeof(value));
  }
}

template <class From, class Real, int DIMS>
void cubic_block(const void* channel, const Patch<DIMS>& patch, const Block<Real, DIMS>& block,
                 int64_t ahead, Real minus, Real times, Real* out) {
  const From* image = static_cast<const From*>(channel);
  Real weight[DIMS][kBlock][4];
  for (int a = 0; a < DIMS; ++a) {
    for (int64_t k = 0; k < block.count; ++k) {
      weigh(static_cast<double>(block.fraction[a][k]), weight[a][k]);
    }
  }
  int64_t first = 0;  // from the voxel at or below a position to its first tap
  for (int a = 0; a < DIMS; ++a) first -= patch.stride[a];
  for (int64_t k = 0; k < block.count; ++k) {
    const From* at = image + block.index[k] + first;
    prefetch(at, ahead * static_cast<int64_t>(sizeof(From)), 1);
    Four<Real> sum = {};
    for (int i = 0; i < (DIMS == 3 ? 4 : 1); ++i) {
      const Real through = DIMS == 3 ? weight[0][k][i] : Real{1};
      if (through == 0) continue;
      const From* plane = DIMS == 3 ? at + i * patch.stride[0] : at;
      for (int j = 0; j < 4; ++j) {
        const Real down = weight[DIMS - 2][k][j];
        if (down == 0) continue;
        const From* row = plane + j * patch.stride[DIMS - 2];
        sum += through * down * (four_voxels<Real>(row) - minus);
      }
    }
    const Four<Real> across = load<Four<Real>>(weight[DIMS - 1][k]);
    sum = across != 0 ? sum * across : Four<Real>{};  // a tap of weight 0 may be NaN
    out[k] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) * times;
  }
}

// How the voxels of a dtype are read and interpolated.
template <class Real, int DIMS>
struct Reader {
  Real (*voxel)(const void* image, int64_t at);
  void (*block)(const void* image, const Patch<DIMS>& patch, const Block<Real, DIMS>& block,
                int64_t ahead, Real minus, Real times, Real* out);
};

template <class From, class Real>
Real read_voxel(const void* image, int64_t at) {
  return static_cast<Real>(static_cast<const From*>(image)[at]);
}

// Voxels that are exact only in double have no reader that makes floats of them.
template <class From, class Real, int DIMS, int TAPS>
Reader<Real, DIMS> reader_of() {
  using Exact =
      std::conditional_t<needs_double<From> && !std::is_same_v<Real, double>, float, From>;
  return {&read_voxel<Exact, Real>,
          TAPS == 2 ? &linear_block<Exact, Real, DIMS> : &cubic_block<Exact, Real, DIMS>};
}

template <class Real, int DIMS, int TAPS>
Reader<Real, DIMS> reader_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Bool:  // a byte of 0 or 1
    case ScalarType::Byte:
      return reader_of<uint8_t, Real, DIMS, TAPS>();
    case ScalarType::UInt16:
      return reader_of<uint16_t, Real, DIMS, TAPS>();
    case ScalarType::UInt32:
      return reader_of<uint32_t, Real, DIMS, TAPS>();
    case ScalarType::UInt64:
      return reader_of<uint64_t, Real, DIMS, TAPS>();
    case ScalarType::Char:
      return reader_of<int8_t, Real, DIMS, TAPS>();
    case ScalarType::Short:
      return reader_of<int16_t, Real, DIMS, TAPS>();
    case ScalarType::Int:
      return reader_of<int32_t, Real, DIMS, TAPS>();
    case ScalarType::Long:
      return reader_of<int64_t, Real, DIMS, TAPS>();
    case ScalarType::Half:
      return reader_of<Half, Real, DIMS, TAPS>();
    case ScalarType::BFloat16:
      return reader_of<BFloat16, Real, DIMS, TAPS>();
    case ScalarType::Double:
      return reader_of<double, Real, DIMS, TAPS>();
    default:
      return reader_of<float, Real, DIMS, TAPS>();
  }
}

}  // namespace cmrfast::cpu

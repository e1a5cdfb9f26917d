// Windows on volumes: where a patch lies, which part of it is inside. Two axes count as three.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common.h"

namespace cmrfast::cpu {

struct Box {
  int64_t n[3];
  int64_t volume() const { return n[0] * n[1] * n[2]; }
};

// The last axes of a list of sizes as a box, missing leading axes as 1.
inline Box box_of(const int64_t* sizes, int64_t dims) {
  Box box{{1, 1, 1}};
  for (int64_t a = 0; a < dims; ++a) box.n[3 - dims + a] = sizes[a];
  return box;
}

// The offsets o in [begin, end) of a window of `size` for which start + o lies in [0, n). Written
// so that no start up to 2^62 overflows.
struct Inside {
  int64_t begin, end;
  Inside(int64_t start, int64_t size, int64_t n)
      : begin(std::clamp<int64_t>(-start, 0, size)), end(std::clamp<int64_t>(n - start, 0, size)) {
    if (end < begin) end = begin;
  }
  bool has(int64_t o) const { return o >= begin && o < end; }
};

// Row p of an integer (P, dims) table as three numbers, none beyond 2^62.
inline void window_start(const int64_t* table, int64_t p, int64_t dims, int64_t* start) {
  constexpr int64_t far = int64_t{1} << 62;
  start[0] = start[1] = start[2] = 0;
  for (int64_t a = 0; a < dims; ++a) {
    start[3 - dims + a] = std::clamp<int64_t>(table[p * dims + a], -far, far);
  }
}

}  // namespace cmrfast::cpu

// Patches cut out of volumes row by row.
#pragma once

#include "conversion.h"

namespace cmrfast::cpu {

// A patch that is cut from a volume at `start`, mirrored along some axes.
struct Crop {
  Box shape, window;  // of the volume and the patch
  int64_t start[3];
  bool flip[3];
};

// The rows [begin, end) of one channel of a patch, written from `to` on: the part inside the volume
// is one converted run, the rest is fill. `source` is the channel of the volume.
inline void crop_rows(const Crop& crop, const char* source, const Conversion& conversion,
                      double shift, double scale, int64_t begin, int64_t end, char* to) {
  constexpr int64_t rows_ahead = 8;
  const auto& [shape, window, start, flip] = crop;
  const int64_t from_bytes = conversion.from_bytes, to_bytes = conversion.to_bytes;
  const Inside inside[3] = {{start[0], window.n[0], shape.n[0]},
                            {start[1], window.n[1], shape.n[1]},
                            {start[2], window.n[2], shape.n[2]}};
  const int64_t n = window.n[2], run_length = inside[2].end - inside[2].begin;
  const int64_t before = flip[2] ? n - inside[2].end : inside[2].begin;
  const int64_t ahead = rows_ahead * (flip[1] ? -1 : 1) * shape.n[2] * from_bytes;
  const int64_t first = flip[2] ? inside[2].end - 1 : inside[2].begin;
  int64_t i = begin / window.n[1], j = begin % window.n[1];
  for (int64_t row = begin; row < end; ++row, to += n * to_bytes) {
    const int64_t oi = flip[0] ? window.n[0] - 1 - i : i;
    const int64_t oj = flip[1] ? window.n[1] - 1 - j : j;
    if (++j == window.n[1]) ++i, j = 0;
    if (run_length == 0 || !inside[0].has(oi) || !inside[1].has(oj)) {
      conversion.fill(to, n);
      continue;
    }
    const int64_t at = ((start[0] + oi) * shape.n[1] + start[1] + oj) * shape.n[2] + start[2];
    const char* from = source + at * from_bytes;
    // Rows are too short and too far apart for hardware prefetchers.
    prefetch(from + inside[2].begin * from_bytes, ahead, run_length * from_bytes);
    conversion.fill(to, before);
    conversion.convert(from + first * from_bytes, to + before * to_bytes, run_length,
                       flip[2] ? -1 : 1, shift, scale);
    conversion.fill(to + (before + run_length) * to_bytes, n - before - run_length);
  }
}

}  // namespace cmrfast::cpu

// Mean, spread and range of many values, from parts that are merged in order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace cmrfast::cpu {

enum class Need { kNothing, kRange, kSpread };  // minimum, maximum and mean; the SD too

template <class T>
struct Statistics {
  double count = 0, mean = 0, squares = 0;  // of the differences from the mean
  T low = std::numeric_limits<T>::infinity(), high = -low;

  Statistics() = default;
  Statistics(const T* values, int64_t n, Need need) : count(static_cast<double>(n)) {
    double sum = 0;
    T least = low, most = high;
#pragma omp simd reduction(+ : sum) reduction(min : least) reduction(max : most)
    for (int64_t k = 0; k < n; ++k) {
      sum += static_cast<double>(values[k]);
      least = values[k] < least ? values[k] : least;
      most = values[k] > most ? values[k] : most;
    }
    low = least;
    high = most;
    mean = sum / count;
    if (need != Need::kSpread) return;
    double about = 0;
    const double centre = mean;
#pragma omp simd reduction(+ : about)
    for (int64_t k = 0; k < n; ++k) {
      const double difference = static_cast<double>(values[k]) - centre;
      about += difference * difference;
    }
    squares = about;
  }

  void merge(const Statistics& other) {
    const double total = count + other.count, apart = other.mean - mean;
    squares += other.squares + apart * apart * count * other.count / total;
    mean += apart * other.count / total;
    count = total;
    low = std::min(low, other.low);
    high = std::max(high, other.high);
  }
  double sd() const { return std::sqrt(squares / count); }
};

}  // namespace cmrfast::cpu

// The module _C: which kernel library this processor can run, and how it was built.
#include <pybind11/pybind11.h>

#include <string>

namespace {

std::string cpu_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return "avx512";
  if (avx2) return "avx2";
#endif
  return "baseline";
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["compiler"] = __VERSION__;
  info["cuda"] = CMRFAST_CUDA;
  info["sanitizer"] =
#ifdef CMRFAST_SANITIZE
      true;
#else
      false;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("cpu_level", &cpu_level, "The widest kernel library this processor runs.");
  m.def("build_info", &build_info, "How the kernel libraries were built.");
}

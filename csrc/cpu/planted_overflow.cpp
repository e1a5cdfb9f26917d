// Writes past the end of a tensor on purpose, to test that the sanitizer build reports it.
#ifdef CMRFAST_SANITIZE

#include "common.h"

namespace cmrfast::cpu {
namespace {

Tensor planted_overflow(const Tensor& x) {
  Tensor out = fresh(x, {x.numel()}, ScalarType::Float);
  write<float>(out)[x.numel()] = 1.0f;
  return out;
}

}  // namespace
}  // namespace cmrfast::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(cmrfast, m) { m.def("planted_overflow(Tensor x) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(cmrfast, CPU, m) {
  m.impl("planted_overflow", TORCH_BOX(&cmrfast::cpu::planted_overflow));
}

#endif

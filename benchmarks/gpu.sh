#!/usr/bin/env bash
# Everything for a machine with a GPU: bash benchmarks/gpu.sh OUT [STAGE...]
#
#   build     the package, CMRFAST_CUDA=require, in place
#   contract  native kernels: the op contract, CUDA graphs
#   triton    Triton kernels: the same
#   sanitize  every op sample under compute-sanitizer's memcheck, racecheck and initcheck
#   large     one call an op on more than 2^31 elements, native and Triton
#   bench     native kernels beside torch, torch.compile and the peers installed here
#   bench-triton  Triton kernels beside torch
#   tune      measures Triton's block sizes into OUT/configs.json
#
# Without a STAGE: all but tune. Each stage alone ends within nine minutes and leaves its log in
# OUT; a failed one does not stop the next. Needs Python 3.11+, torch with CUDA, Triton, nvcc, a C++
# compiler, setuptools, pybind11, ninja, pytest, pytest-xdist and pytest-benchmark; no network.
set -uo pipefail
[ $# -ge 1 ] || { sed -n '2,/^set/{/^#/p}' "$0"; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=2
tests="tests/ops/test_contract.py tests/ops/test_cuda_graphs.py"

build() {
  CMRFAST_CUDA=require NVCC_APPEND_FLAGS=-Xptxas=-v \
    python3 setup.py -q build_ext --inplace >"$out/build.txt" 2>&1 ||
    { grep -E "error|FAILED" "$out/build.txt"; return 1; }
  python3 packaging/ptxas_report.py "$out/build.txt"
  python3 -c "
import torch
from cmrfast import _C, ops
print(torch.__version__, torch.cuda.get_device_name(), _C.build_info())
for op, row in ops.backends().items():
    print(f'{op:16}', row)"
}

contract() {
  CMRFAST_BACKEND=native python3 -m pytest -q -n 8 $tests tests/ops/test_cuda_build.py
}

triton() {
  CMRFAST_BACKEND=triton python3 -m pytest -q -n 12 $tests -k cuda
}

sanitize() {
  command -v compute-sanitizer >/dev/null || { echo "there is no compute-sanitizer here"; return 0; }
  local tool status=0
  for tool in memcheck racecheck initcheck; do
    # Without torch's cache, every tensor is an allocation whose ends the tools know.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 CMRFAST_BACKEND=native timeout 170 \
      compute-sanitizer --tool $tool --error-exitcode 9 python3 -m tests.support.run_samples cuda ||
      status=1
  done
  return $status
}

large() {
  local backend status=0
  for backend in native triton; do
    CMRFAST_BACKEND=$backend python3 -m pytest -q tests/ops/test_large.py -m slow -k "not cpu" ||
      status=1
  done
  return $status
}

bench() { measure native; }
bench-triton() { measure triton --without torch.compile -k workload; }
measure() {
  local backend=$1
  shift
  CMRFAST_BACKEND=$backend timeout 520 python3 -m pytest -v benchmarks/bench_ops.py --device cuda \
    --rounds 9 --benchmark-disable-gc --benchmark-columns=median \
    --benchmark-json="$out/$backend.json" "$@"
  local status=$?
  python3 -m benchmarks.table "$out/$backend.json" | tee "$out/$backend.txt"
  return $status
}

tune() { python3 -m cmrfast.ops.triton.tune --out "$out/configs.json"; }

failed=()
for stage in "${@:-build}" $([ $# -gt 0 ] || echo contract triton sanitize large bench bench-triton); do
  printf '\n== %s (%s s)\n' "$stage" "$SECONDS"
  "$stage" 2>&1 | tee "$out/$stage.log" || failed+=("$stage")
done
printf '\n== done in %s s; failed: %s\n' "$SECONDS" "${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]

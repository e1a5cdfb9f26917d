#!/usr/bin/env bash
# Everything for a machine with a GPU: bash benchmarks/gpu.sh OUT [STAGE...]
#
#   build     the package, CMRFAST_CUDA=require, in place
#   contract  native kernels: the op contract, CUDA graphs
#   triton    Triton kernels: the same
#   sanitize  every op sample under compute-sanitizer's memcheck, racecheck and initcheck
#   large     one call an op on more than 2^31 elements, native and Triton
#   bench     the kernels that users get, beside torch, torch.compile and the peers installed here
#   kernels   native and Triton kernels of each op, each beside torch and torch.compile
#   tune      measures Triton's block sizes into OUT/configs.json
#
# Without a STAGE: all but tune. Each stage builds the package first where that has not been done,
# is interrupted after LIMIT_S (520) seconds, and leaves at most eight files in OUT; a failed one does
# not stop the next. A benchmark that is interrupted has written what it had measured. Needs Python
# 3.11+, torch with CUDA, Triton, nvcc, a C++ compiler, setuptools 77+, pybind11, ninja, pytest,
# pytest-xdist and pytest-benchmark; no network.
#
# DEVICE=cpu is a dry run for the tests; SELECT chooses among the workloads of bench and kernels.
set -uo pipefail
[ $# -ge 1 ] || { sed -n '2,/^set/{/^#/p}' "$0"; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
device=${DEVICE:-cuda} select=${SELECT:-}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=2
tests="tests/ops/test_contract.py tests/ops/test_cuda_graphs.py"

# Run a command until a part of what is left of this stage's time, by default all of it, has passed.
limited() {
  local part=1
  if [ "$1" = --part ]; then part=$2; shift 2; fi
  local left=$(((began + ${LIMIT_S:-520} - SECONDS) / part))
  [ $left -gt 0 ] || { echo "no time is left for: $*"; return 124; }
  timeout -s INT -k 15 $left "$@"
}

build() {
  python3 -c "import setuptools, torch; print('setuptools', setuptools.__version__, torch.__version__)"
  CMRFAST_CUDA=require NVCC_APPEND_FLAGS=-Xptxas=-v \
    limited python3 setup.py -q build_ext --inplace >"$out/build.txt" 2>&1 ||
    { grep -E "error|FAILED|license" "$out/build.txt"; tail -n 5 "$out/build.txt"; return 1; }
  python3 packaging/ptxas_report.py "$out/build.txt"
  local status=$?
  python3 -c "
import torch
from cmrfast import _C, ops
print(torch.__version__, torch.cuda.get_device_name(), _C.build_info())
for op, row in ops.backends().items():
    print(f'{op:16}', row)" && return $status
}

contract() {
  CMRFAST_BACKEND=native limited python3 -m pytest -q -n 8 $tests tests/ops/test_cuda_build.py \
    -k "$device"
}

triton() {
  CMRFAST_BACKEND=triton limited python3 -m pytest -q -n 12 $tests -k "$device"
}

sanitize() {
  command -v compute-sanitizer >/dev/null || { echo "there is no compute-sanitizer here"; return 0; }
  local tool status=0 parts=3
  for tool in memcheck racecheck initcheck; do
    # Without torch's cache, every tensor is an allocation whose ends the tools know.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 CMRFAST_BACKEND=native limited --part $((parts--)) \
      compute-sanitizer --tool $tool --error-exitcode 9 \
      python3 -m tests.support.run_samples "$device" || status=1
  done
  return $status
}

large() {
  local backend status=0 parts=2
  for backend in native triton; do
    CMRFAST_BACKEND=$backend limited --part $((parts--)) \
      python3 -m pytest -q tests/ops/test_large.py -m slow -k "$device" || status=1
  done
  return $status
}

bench() {
  measure 1 auto "$select"
  local status=$?
  python3 -m benchmarks.table "$out/auto.jsonl" | tee "$out/table.txt" && return $status
}

kernels() {
  local status=0
  measure 2 native "${select:-workload}" --peers torch || status=1
  measure 1 triton "${select:-workload}" --peers torch || status=1
  python3 -m benchmarks.table --kernels "$out/native.jsonl" "$out/triton.jsonl" |
    tee "$out/kernels.txt" && return $status
}

# measure PART BACKEND SELECTION [OPTION...]: every result goes into OUT/BACKEND.jsonl.
measure() {
  local backend=$2
  CMRFAST_BACKEND=$backend limited --part "$1" python3 -m pytest -v benchmarks/bench_ops.py \
    --device "$device" --rounds 9 --benchmark-disable-gc --benchmark-columns=median \
    --record "$out/$backend.jsonl" -k "$3" "${@:4}"
}

tune() { limited python3 -m cmrfast.ops.triton.tune --out "$out/configs.json"; }

is_built() { compgen -G "cmrfast/_$([ "$device" = cuda ] && echo cuda || echo C).*" >/dev/null; }

stages=("$@")
[ $# -gt 0 ] || stages=(build contract triton sanitize large bench kernels)
failed=()
for stage in "${stages[@]}"; do
  began=$SECONDS
  printf '\n== %s (%s s)\n' "$stage" "$SECONDS"
  if [ "$stage" != build ] && ! is_built; then
    build 2>&1 | tee "$out/build.log" || failed+=(build)
  fi
  "$stage" 2>&1 | tee "$out/$stage.log" || failed+=("$stage")
done
printf '\n== done in %s s; failed: %s\n' "$SECONDS" "${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]

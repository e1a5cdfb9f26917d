"""The sanitizer build (CMRFAST_SANITIZE=1) stops at a memory fault, so a green run means none."""

import subprocess
import sys

import pytest

_C = pytest.importorskip("cmrfast._C", reason="installed without native kernels")


@pytest.mark.skipif(not _C.build_info()["sanitizer"], reason="not a sanitizer build")
def test_a_planted_overflow_is_reported():
    code = "import torch, cmrfast.ops; torch.ops.cmrfast.planted_overflow(torch.ones(1000))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in run.stderr
    assert "planted_overflow" in run.stderr

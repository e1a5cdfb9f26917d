"""Freed memory is kept meanwhile, and goes back to the system at the end."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cmrfast.train import keep_freed_memory
from cmrfast.train.allocator import give_back_freed_memory

SIZE = 16 << 20  # 64 MB of float32
pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc can be told what to keep"
)


def faults(tensors: int) -> int:
    """Pages that writing new tensors maps, one tensor after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(tensors):
        torch.ones(SIZE)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_mb() -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in x)
    return int(line.split()[1]) / 1024


def test_tensors_reuse_the_memory_of_those_before():
    before = faults(8)
    with keep_freed_memory():
        torch.ones(SIZE)
        kept = faults(8)
    assert kept < before / 2 or before < 1000  # few where all memory is in huge pages


def test_memory_goes_back_at_the_end_of_the_outermost():
    with keep_freed_memory():
        with keep_freed_memory():
            torch.ones(SIZE)
        kept = resident_mb()
    assert resident_mb() < kept - 48


AFTER = """
import resource, torch
from cmrfast.train import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(4 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with keep_freed_memory():
    pass
faults()
print(faults())
"""


def test_smaller_tensors_reuse_memory_after_it_too():
    # In a process of its own: what other tests have left free may lie anywhere.
    done = subprocess.run(
        [sys.executable, "-c", AFTER], capture_output=True, text=True, check=True, timeout=120
    )
    mapped_each_time = 8 * (16 << 20) // resource.getpagesize()
    assert int(done.stdout) < mapped_each_time / 2


def test_memory_can_go_back_before_the_end():
    with keep_freed_memory():
        torch.ones(SIZE)
        kept = resident_mb()
        give_back_freed_memory()
        assert resident_mb() < kept - 48


def test_memory_goes_back_after_an_error():
    kept = []

    def fail():
        with keep_freed_memory():
            torch.ones(SIZE)
            kept.append(resident_mb())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert resident_mb() < kept[0] - 48

"""What ptxas said of the CUDA kernels, from a build's output: registers, shared memory, spills.

NVCC_APPEND_FLAGS=-Xptxas=-v CMRFAST_CUDA=require python setup.py build_ext 2>&1 | tee build.log
python packaging/ptxas_report.py build.log

Ends with 1 if a kernel spills more than a few registers, or if the output tells of no kernel.
"""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_ENTRY = re.compile(r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>sm_\w+)'")
_SPILL = re.compile(r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads")
_USED = re.compile(r"Used (?P<registers>\d+) registers")
_SHARED = re.compile(r"(?P<bytes>\d+) bytes smem")
#: Bytes stored and loaded that ptxas trades on its own account for one more block at a time.
TRADED = 32


@dataclass
class Kernel:
    """One kernel on one architecture."""

    name: str
    architecture: str
    spilled: int = 0
    registers: int = 0
    shared: int = 0


def kernels(log: str) -> list[Kernel]:
    """Every kernel that the output tells of."""
    found: list[Kernel] = []
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            found.append(Kernel(entry["name"], entry["arch"]))
        if not found:
            continue
        if spill := _SPILL.search(line):
            found[-1].spilled += int(spill["stores"]) + int(spill["loads"])
        if used := _USED.search(line):
            found[-1].registers = int(used["registers"])
            shared = _SHARED.search(line)
            found[-1].shared = int(shared["bytes"]) if shared else 0
    return found


def readable(names: list[str]) -> list[str]:
    """The names as written in C++, where c++filt is there to say so."""
    if not names or shutil.which("c++filt") is None:
        return names
    given = "\n".join(names)
    plain = subprocess.run(["c++filt"], input=given, capture_output=True, text=True, check=True)
    where = re.compile(r"\(anonymous namespace\)::|cmrfast::cuda::")
    return [where.sub("", name) for name in plain.stdout.splitlines()]


def main() -> None:
    """Print one line an architecture, then every kernel that spills too much."""
    found = kernels(Path(sys.argv[1]).read_text())
    if not found:
        sys.exit(f"ptxas_report: {sys.argv[1]} tells of no kernel")
    for architecture in sorted({k.architecture for k in found}):
        of = [k for k in found if k.architecture == architecture]
        most, largest = max(k.registers for k in of), max(k.shared for k in of)
        print(
            f"{architecture}: {len(of)} kernels, at most {most} registers and {largest} bytes of "
            f"shared memory, {max(k.spilled for k in of)} bytes spilled"
        )
    spilling = [k for k in found if k.spilled > TRADED]
    for kernel, name in zip(spilling, readable([k.name for k in spilling]), strict=False):
        print(f"{kernel.architecture} spills {kernel.spilled} bytes: {name}")
    sys.exit(bool(spilling))


if __name__ == "__main__":
    main()

"""What there is to build with: compilers, torch's headers, CPU levels and GPU architectures."""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST_TORCH = (2, 11)
TORCH = "torch>=2.11"

#: One kernel library each; the widest that the machine runs is loaded (cpu_level() in module.cpp).
CPU_LEVELS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi2"],
    "avx512": [
        *("-mavx2", "-mfma", "-mf16c", "-mbmi2"),
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
    ],
}

#: Kernels whose benchmarks ran no faster with AVX-512 than with AVX2. Its library has them as
#: compiled for AVX2.
AS_FOR_AVX2 = {
    *("affine_sample", "contract_axis", "conversion", "extract_patches", "merge_patches"),
    *("resample_argmax", "window_counts"),
}

CUDA_ARCHITECTURES = "8.0;9.0+PTX"  # unless TORCH_CUDA_ARCH_LIST says otherwise

CPUINFO = Path("/proc/cpuinfo")

#: For compilers that know them: GCC has one that clang lacks, and the other way round.
OPTIONAL_FLAGS = ["-ftree-vectorize", "-fvect-cost-model=dynamic", "-Wno-psabi"]


def cpu_mode() -> str:
    """`CMRFAST_CPU`: `auto` (native kernels if they can be built), `0` (none), `require`."""
    mode = os.environ.get("CMRFAST_CPU", "auto")
    if mode not in ("auto", "0", "require"):
        sys.exit(f"CMRFAST_CPU: must be one of auto, 0, require; got {mode!r}")
    return mode


def find_compiler() -> list[str] | None:
    """The C++ compiler as a command, `CXX` first; None where there is none."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(shlex.split(name)[0]):
            return shlex.split(name)
    return None


def known_flags(compiler: list[str], flags: list[str]) -> list[str]:
    """Those of the flags that the compiler accepts without a warning."""
    return [
        flag
        for flag in flags
        if not subprocess.run(
            [*compiler, "-Werror", flag, "-fsyntax-only", "-x", "c++", os.devnull],
            capture_output=True,
            check=False,
        ).returncode
    ]


def link_flags() -> list[str]:
    """For a library whose missing symbols are those of the process that loads it."""
    return ["-shared", *(["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])]


def cpu_levels() -> dict[str, list[str]]:
    """The levels to build, each with its compiler flags.

    `CMRFAST_CPU_LEVELS="avx2 avx512"` names them, `all` are those of this processor family. Where
    nothing is named, `baseline` is left out if this processor has AVX2.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    levels = CPU_LEVELS if x86 else {"baseline": []}
    wanted = os.environ.get("CMRFAST_CPU_LEVELS", "").split()
    if not wanted and x86 and runs_avx2():
        wanted = [level for level in levels if level != "baseline"]
    elif wanted in ([], ["all"]):
        wanted = list(levels)
    if unknown := [level for level in wanted if level not in levels]:
        some = ", ".join(levels)
        sys.exit(f"CMRFAST_CPU_LEVELS: must be all or some of {some}; got {unknown[0]!r}")
    return {level: flags for level, flags in levels.items() if level in wanted}


def runs_avx2() -> bool:
    """Whether this processor has AVX2, as far as Linux says."""
    return CPUINFO.exists() and "avx2" in CPUINFO.read_text().split()


def torch_folder() -> Path | None:
    """Where torch is installed; None where it is not (as while pip asks for requirements)."""
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec and spec.origin else None


def torch_has_cuda(torch: Path) -> bool:
    """Whether that torch was built for CUDA."""
    return any((torch / "lib").glob("*torch_cuda.*"))


def find_nvcc(torch: Path) -> tuple[Path | None, str]:
    """nvcc, if the CUDA kernels are to be built, else why they are not.

    `CMRFAST_CUDA` says when: `auto` (where there are nvcc and a torch with CUDA), `0`, `require`.
    """
    mode = os.environ.get("CMRFAST_CUDA", "auto")
    if mode not in ("auto", "0", "require"):
        sys.exit(f"CMRFAST_CUDA: must be one of auto, 0, require; got {mode!r}")
    if mode == "0":
        return None, "CMRFAST_CUDA=0"
    if mode == "auto" and not torch_has_cuda(torch):
        return None, "torch has no CUDA"
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [*(str(Path(home) / "bin") for home in homes if home), os.environ.get("PATH", "")]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(folders))
    if nvcc is None:
        if mode == "require":
            sys.exit("cmrfast: CMRFAST_CUDA=require, but nvcc is neither in CUDA_HOME nor on PATH")
        return None, "nvcc was not found"
    return Path(nvcc), ""


def gpu_architectures(nvcc: Path) -> list[str]:
    """What to compile for, as nvcc calls it (sm_90, compute_90), of what this nvcc knows."""
    listed = subprocess.check_output([nvcc, "--list-gpu-arch"], text=True).split()
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES
    names: list[str] = []
    for entry in wanted.replace(";", " ").split():
        number = entry.removesuffix("+PTX").replace(".", "")
        if f"compute_{number.rstrip('af')}" not in listed:
            print(f"cmrfast: nvcc does not know architecture {entry}; skipped", file=sys.stderr)
            continue
        names.append(f"sm_{number}")
        if entry.endswith("+PTX"):
            names.append(f"compute_{number}")
    if not names:
        sys.exit(f"cmrfast: nvcc knows none of TORCH_CUDA_ARCH_LIST={wanted}")
    return names


def gencode(architectures: list[str]) -> list[str]:
    """nvcc's flags for these architectures."""
    return [f"-gencode=arch=compute_{name.partition('_')[2]},code={name}" for name in architectures]

"""The CUDA kernels on the CPU: the same sources, bindings included, with threads as fibers."""

import fcntl
import hashlib
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch

import cmrfast.ops  # noqa: F401  (declares all ops)
from cmrfast.ops._op import OPS
from tests.support.paths import ROOT

SOURCES = ROOT / "csrc/cuda"
sys.path.insert(0, str(ROOT / "packaging"))
import toolchain  # noqa: E402

FLAGS = "-std=c++20 -O1 -g1 -fPIC -fvisibility=hidden -Wall -Wextra -Werror -Wno-unknown-pragmas"
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"


def build(sources: list[Path], sanitize: bool = False, program: bool = False) -> Path:
    """A library (or program) of these sources for the CPU; what did not change is kept."""
    compiler = toolchain.find_compiler()
    torch_folder = toolchain.torch_folder()
    flags = [*FLAGS.split(), *(SANITIZE.split() if sanitize else [])]
    defines = ["-DCMRFAST_ON_HOST", "-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{SOURCES}"]
    folder = ROOT / "build/on_host"
    folder.mkdir(parents=True, exist_ok=True)
    headers = b"".join(f.read_bytes() for f in sorted(ROOT.glob("csrc/**/*.*h")))
    shared = headers + " ".join([*compiler, *flags, torch.__version__]).encode()

    def object_of(source: Path) -> Path:
        digest = hashlib.sha256(shared + source.read_bytes()).hexdigest()[:16]
        return folder / f"{source.stem}-{digest}.o"

    def compile_one(source: Path) -> None:
        if object_of(source).exists():
            return
        unfinished = object_of(source).with_suffix(".tmp")
        includes = ["-isystem", torch_folder / "include"]
        output = ["-x", "c++", "-c", source, "-o", unfinished]
        subprocess.run([*compiler, *flags, *defines, *includes, *output], check=True)
        unfinished.rename(object_of(source))

    objects = [object_of(source) for source in sources]
    digest = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:16]
    result = folder / f"{sources[0].stem}-{digest}.{'out' if program else 'so'}"
    with (folder / "lock").open("w") as lock:  # other test processes may want the same
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(compile_one, sources))
            link = [] if program else ["-shared", f"-L{torch_folder / 'lib'}", "-ltorch_cpu"]
            subprocess.run([*compiler, *flags, *objects, *link, "-o", result], check=True)
    return result


def bound_kernels() -> set[str]:
    """Names of the ops that the bindings implement."""
    sources = "".join(f.read_text() for f in SOURCES.glob("bind_*.cpp"))
    return set(re.findall(r'm\.impl\("(\w+)"', sources))


def build_kernels(sanitize: bool = False) -> Path:
    """The library of all kernels and their bindings."""
    return build(sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.cu")]), sanitize)


@cache
def load(library: Path) -> SimpleNamespace:
    """The operators of such a library, by name; they take the arguments of cmrfast's own."""
    namespace = torch.library.Library("cmrfast_on_host", "DEF")
    for op in OPS.values():
        namespace.define(str(op.call._schema).removeprefix("cmrfast::"))
    torch.ops.load_library(str(library))
    calls = {name: getattr(torch.ops.cmrfast_on_host, name).default for name in bound_kernels()}
    return SimpleNamespace(**calls, _kept=namespace)

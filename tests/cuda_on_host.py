"""The CUDA kernels on the CPU: the same sources, bindings included, with threads as fibers.

``python tests/cuda_on_host.py`` runs every op sample once, for a sanitizer build to watch.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from op_samples import SAMPLES

import cmrfast.ops  # noqa: F401  (declares all ops)
from cmrfast.ops._op import OPS

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "csrc/cuda"
KERNELS = sorted(SOURCES.glob("*.cu"))
sys.path.insert(0, str(ROOT / "packaging"))
import toolchain  # noqa: E402

FLAGS = "-std=c++20 -O1 -g1 -fPIC -fvisibility=hidden -Wall -Wextra -Werror -Wno-unknown-pragmas"
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"


def build(name: str, sources: list[Path], sanitize: bool = False) -> Path:
    """A library of these sources for the CPU, made anew where one of them changed."""
    compiler = toolchain.find_compiler()
    torch_folder = toolchain.torch_folder()
    flags = [*FLAGS.split(), *(SANITIZE.split() if sanitize else [])]
    defines = ["-DCMRFAST_ON_HOST", "-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{SOURCES}"]
    digest = hashlib.sha256(" ".join(map(str, [*compiler, *flags, torch.__version__])).encode())
    for file in sorted([*sources, *SOURCES.glob("*.h"), *SOURCES.glob("*.cuh")]):
        digest.update(file.read_bytes())
    folder = ROOT / "build/on_host" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"{name}.so"

    def compile_one(source: Path) -> str:
        out = folder / f"{source.stem}.o"
        includes = ["-isystem", torch_folder / "include"]
        command = [*compiler, *flags, *defines, *includes, "-x", "c++", "-c", source, "-o", out]
        subprocess.run(command, check=True)
        return str(out)

    with (folder / "lock").open("w") as lock:  # other test processes may want the same library
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(compile_one, sources))
            link = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-o", library]
            subprocess.run([*compiler, *flags, "-shared", *objects, *link], check=True)
    return library


@cache
def load(library: Path) -> SimpleNamespace:
    """The operators of such a library, by name; they take the arguments of cmrfast's own."""
    namespace = torch.library.Library("cmrfast_on_host", "DEF")
    for op in OPS.values():
        namespace.define(str(op.call._schema).removeprefix("cmrfast::"))
    torch.ops.load_library(str(library))
    calls = {name: getattr(torch.ops.cmrfast_on_host, name).default for name in OPS}
    return SimpleNamespace(**calls, _kept=namespace)


def main() -> None:
    calls = load(Path(os.environ["CMRFAST_ON_HOST_LIBRARY"]))
    for name, samples in SAMPLES.items():
        for dtype in (torch.float32, torch.float64):
            torch.manual_seed(0)
            for args in samples("cpu", dtype):
                getattr(calls, name)(*args)
        print(name, flush=True)


if __name__ == "__main__":
    main()

"""Only what pyproject.toml cannot say: build the kernel libraries and _C with ninja.

The same kernel sources are compiled once per CPU level into libraries of their own, so that no
inline function compiled for a newer processor can ever be picked on an older one. The CUDA kernels
are a library of their own, for it cannot load beside a torch without CUDA.
`CMRFAST_SANITIZE=1` builds with ASan and UBSan. Without a C++ compiler the package installs
as pure Python.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "packaging"))
import toolchain  # noqa: E402

FLAGS = f"""
    -std=c++20 -O2 -ftree-vectorize -fvect-cost-model=dynamic -fPIC -fvisibility=hidden
    -I{ROOT / "csrc"} -ffile-prefix-map={ROOT}=.
    -fno-math-errno -fno-trapping-math -fopenmp-simd -Wall -Wextra -Wno-unknown-pragmas -Wno-psabi
    -DTORCH_TARGET_VERSION=0x020a000000000000
""".split()
SANITIZE = [
    *("-O1", "-g", "-fno-omit-frame-pointer", "-DCMRFAST_SANITIZE"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
]
NVCC_FLAGS = [
    *("-std=c++20", "-O3", "--expt-relaxed-constexpr"),
    "-Xcompiler=-fPIC,-fvisibility=hidden",
]


class BuildExt(build_ext):
    """All libraries from one ninja file: parallel, and incremental for editable installs."""

    def run(self) -> None:
        compiler = toolchain.find_compiler()
        if compiler is None:
            print(
                "cmrfast: no C++ compiler found; installing without native kernels", file=sys.stderr
            )
            self.extensions = []
            return
        torch = toolchain.torch_folder()
        if torch is None:
            sys.exit("cmrfast: building the kernels needs torch's headers; install torch first")
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        self.nvcc, self.cuda = toolchain.find_nvcc(torch)
        if self.nvcc and os.environ.get("CMRFAST_SANITIZE") == "1":
            self.nvcc, self.cuda = None, "a sanitizer build"
        if self.nvcc is None:
            print(f"cmrfast: building without CUDA kernels: {self.cuda}", file=sys.stderr)
        (build / "build.ninja").write_text(self.ninja_file(" ".join(compiler), torch, build))
        import ninja

        try:
            subprocess.check_call([Path(ninja.BIN_DIR) / "ninja", "-C", build])
        except subprocess.CalledProcessError:
            way_out = "; CMRFAST_CUDA=0 leaves the CUDA kernels out" if self.nvcc else ""
            sys.exit(f"cmrfast: the kernels do not compile, see above{way_out}")

    def ninja_file(self, compiler: str, torch: Path, build: Path) -> str:
        import pybind11

        sanitize = SANITIZE if os.environ.get("CMRFAST_SANITIZE") == "1" else []
        flags = [*FLAGS, *sanitize]
        lines = [
            f"cxx = {compiler}",
            "rule compile",
            "  command = $cxx -MD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule precompile",
            "  command = $cxx -MD -MF $out.d $flags -x c++-header $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = $cxx -shared {' '.join(sanitize)} $in -o $out $libs",
        ]

        def library(
            name: str, sources: list[Path], flags: list[str], libs: str = "", needs: str = ""
        ) -> None:
            objects = [f"{name}/{source.stem}.o" for source in sources]
            for source, target in zip(sources, objects, strict=True):
                lines.append(f"build {target}: compile {source} {needs}")
                lines.append(f"  flags = {' '.join(flags)}")
            out = Path(self.get_ext_fullpath(f"cmrfast.{name}")).resolve()
            lines.extend((f"build {out}: link {' '.join(objects)}", f"  libs = {libs}"))

        if self.nvcc is None:
            cuda = f"not built: {self.cuda}"
        else:
            architectures = toolchain.gpu_architectures(self.nvcc)
            lines.extend(self.cuda_library(torch, build, flags, toolchain.gencode(architectures)))
            cuda = " ".join(architectures)
        python = self.include_dirs  # setuptools fills in the folders of Python.h
        includes = [f"-I{path}" for path in [pybind11.get_include(), *python]]
        info = f"'-DCMRFAST_CUDA=\"{cuda}\"'"
        library("_C", [ROOT / "csrc/module.cpp"], [*flags, *includes, info, "-O0"])  # nothing hot
        kernels = sorted((ROOT / "csrc/cpu").glob("*.cpp"))
        for level, machine in toolchain.cpu_levels().items():
            level_flags = [
                *flags,
                *machine,
                f"-isystem {torch / 'include'}",
                f"-DCMRFAST_LEVEL={level}",
            ]
            # torch's headers are a third of the work: read once a level. Compilers that cannot use
            # what was precompiled read the file beside it.
            header = f"_cpu_{level}/common.h"
            (build / header).parent.mkdir(exist_ok=True)
            if not (build / header).exists():  # else all would be compiled again
                (build / header).write_text("#include <common.h>\n")
            lines.append(f"build {header}.gch: precompile {header}")
            lines.append(f"  flags = {' '.join(level_flags)}")
            level_flags.append(f"-include {header}")
            libs = f"-L{torch / 'lib'} -ltorch_cpu"
            library(f"_cpu_{level}", kernels, level_flags, libs, f"| {header}.gch")
        return "\n".join(lines) + "\n"

    def cuda_library(
        self, torch: Path, build: Path, flags: list[str], gencode: list[str]
    ) -> list[str]:
        """Ninja's lines for _cuda: nvcc makes the kernels, the C++ compiler what binds them."""
        lines = [
            f"nvcc = {self.nvcc}",
            "rule compile_cuda",
            f"  command = $nvcc -MD -MF $out.d {' '.join([*NVCC_FLAGS, *gencode])} -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link_cuda",
            "  command = $nvcc -shared -cudart=static $in -o $out $libs",
        ]
        objects = []
        for source in sorted((ROOT / "csrc/cuda").glob("*.c*")):
            if source.suffix in (".cu", ".cpp"):
                objects.append(f"_cuda/{source.stem}.o")
                rule = "compile_cuda" if source.suffix == ".cu" else "compile"
                lines.append(f"build {objects[-1]}: {rule} {source}")
            if source.suffix == ".cpp":
                lines.append(f"  flags = {' '.join(flags)} -isystem {torch / 'include'}")
        libraries = f"-L{torch / 'lib'}"
        if not toolchain.torch_has_cuda(torch):  # an empty stand-in: only the name goes in
            (build / "empty.cpp").touch()
            lines.extend(
                (
                    "rule stand_in",
                    "  command = $cxx -shared -Wl,-soname,libtorch_cuda.so $in -o $out",
                    "build _cuda/libtorch_cuda.so: stand_in empty.cpp",
                )
            )
            objects.append("| _cuda/libtorch_cuda.so")
            libraries = f"-L_cuda {libraries}"
        out = Path(self.get_ext_fullpath("cmrfast._cuda")).resolve()
        lines.extend(
            (
                f"build {out}: link_cuda {' '.join(objects)}",
                f"  libs = {libraries} -Xlinker --no-as-needed -ltorch_cpu -ltorch_cuda",
            )
        )
        return lines

    def get_outputs(self) -> list[str]:
        names = ["_C", *(f"_cpu_{level}" for level in toolchain.cpu_levels()), "_cuda"]
        paths = [self.get_ext_fullpath(f"cmrfast.{name}") for name in names]
        return [path for path in paths if Path(path).exists()]


setup(
    ext_modules=[
        Extension("cmrfast._C", ["csrc/module.cpp"])
    ],  # tells setuptools that there is binary code
    cmdclass={"build_ext": BuildExt},
)

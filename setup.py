"""Only what pyproject.toml cannot say: build the kernel libraries and _C with ninja.

The same kernel sources are compiled once per CPU level into libraries of their own, so that no
inline function compiled for a newer processor can ever be picked on an older one. Where a newer
level gains nothing, its library takes the older one's objects. The CUDA kernels
are a library of their own, for it cannot load beside a torch without CUDA.
`CMRFAST_SANITIZE=1` builds with ASan and UBSan. Without a C++ compiler, or where the kernels do not
compile, the package installs as pure Python and keeps the reason in `unbuilt.txt`;
`CMRFAST_CPU=require` makes this an error, and `CMRFAST_CPU=0` builds nothing.
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
    -std=c++20 -O2 -fPIC -fvisibility=hidden -I{ROOT / "csrc"} -ffile-prefix-map={ROOT}=.
    -fno-math-errno -fno-trapping-math -fopenmp-simd -Wall -Wextra -Wno-unknown-pragmas
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
        mode, compiler = toolchain.cpu_mode(), toolchain.find_compiler()
        self.unbuilt = Path(self.get_ext_fullpath("cmrfast.unbuilt")).with_name("unbuilt.txt")
        self.unbuilt.unlink(missing_ok=True)
        if compiler is None:
            self.give_up("no C++ compiler was found")
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
        fault = self.compile(compiler, torch, build)
        if fault and self.nvcc:
            if os.environ.get("CMRFAST_CUDA") == "require":
                sys.exit("cmrfast: the kernels do not compile, see above")
            print("cmrfast: trying again without CUDA kernels", file=sys.stderr)
            self.nvcc, self.cuda = None, "they did not compile"
            fault = self.compile(compiler, torch, build)
        if not fault:
            return
        if mode == "require" or self.inplace or self.editable_mode:  # a developer wants to know
            sys.exit(
                "cmrfast: the kernels do not compile, see above; CMRFAST_CPU=0 leaves them out"
            )
        self.give_up(f"they did not compile with {' '.join(compiler)}: {fault}")

    def compile(self, compiler: list[str], torch: Path, build: Path) -> str:
        """Build all libraries; returns the first error, empty if there is none."""
        (build / "build.ninja").write_text(self.ninja_file(compiler, torch, build))
        return run_ninja(build)

    def give_up(self, why: str) -> None:
        """Install as pure Python, and keep the reason."""
        if toolchain.cpu_mode() == "require":
            sys.exit(f"cmrfast: CMRFAST_CPU=require, but {why}")
        print(f"cmrfast: installing without native kernels: {why}", file=sys.stderr)
        self.extensions = []
        self.unbuilt.parent.mkdir(parents=True, exist_ok=True)
        self.unbuilt.write_text(why + "\n", "utf-8")

    def ninja_file(self, compiler: list[str], torch: Path, build: Path) -> str:
        import pybind11

        sanitize = SANITIZE if os.environ.get("CMRFAST_SANITIZE") == "1" else []
        flags = [*FLAGS, *toolchain.known_flags(compiler, toolchain.OPTIONAL_FLAGS), *sanitize]
        lines = [
            f"cxx = {' '.join(compiler)}",
            "rule compile",
            "  command = $cxx -MD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule precompile",
            "  command = $cxx -MD -MF $out.d $flags -x c++-header $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = $cxx {' '.join([*toolchain.link_flags(), *sanitize])} $in -o $out $libs",
        ]

        def compiled(
            name: str, sources: list[Path], flags: list[str], needs: str = ""
        ) -> list[str]:
            objects = [f"{name}/{source.stem}.o" for source in sources]
            for source, target in zip(sources, objects, strict=True):
                lines.append(f"build {target}: compile {source} {needs}")
                lines.append(f"  flags = {' '.join(flags)}")
            return objects

        def link(name: str, objects: list[str], libs: str = "") -> None:
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
        not_hot = [*flags, *includes, info, "-O0"]
        link("_C", compiled("_C", [ROOT / "csrc/module.cpp"], not_hot))
        kernels = sorted((ROOT / "csrc/cpu").glob("*.cpp"))
        levels = toolchain.cpu_levels()
        for level, machine in levels.items():
            has_avx2 = level == "avx512" and "avx2" in levels
            shared = toolchain.AS_FOR_AVX2 if has_avx2 else set()
            level_flags = [*flags, *machine, f"-isystem {torch / 'include'}"]
            # torch's headers are a third of the work: read once a level. Compilers that cannot use
            # what was precompiled read the file beside it.
            header = f"_cpu_{level}/common.h"
            (build / header).parent.mkdir(exist_ok=True)
            if not (build / header).exists():  # else all would be compiled again
                (build / header).write_text("#include <common.h>\n")
            lines.append(f"build {header}.gch: precompile {header}")
            lines.append(f"  flags = {' '.join(level_flags)}")
            level_flags.append(f"-include {header}")
            own = [kernel for kernel in kernels if kernel.stem not in shared]
            objects = compiled(f"_cpu_{level}", own, level_flags, f"| {header}.gch")
            objects += [f"_cpu_avx2/{name}.o" for name in sorted(shared)]
            link(f"_cpu_{level}", objects, f"-L{torch / 'lib'} -ltorch_cpu")
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
        return [path for path in [*paths, str(self.unbuilt)] if Path(path).exists()]


def run_ninja(build: Path) -> str:
    """Build, showing what is printed; returns the first error, empty if there is none."""
    import ninja

    command = [Path(ninja.BIN_DIR) / "ninja", "-C", build]
    fault = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            if not fault and "error" in line.lower():
                fault = line.strip()
    return (fault or f"ninja ended with {running.returncode}") if running.returncode else ""


#: Binary code makes a wheel one of this platform; without any it is one for all.
native = {
    "ext_modules": [Extension("cmrfast._C", ["csrc/module.cpp"])],
    "cmdclass": {"build_ext": BuildExt},
}
setup(**({} if toolchain.cpu_mode() == "0" else native))

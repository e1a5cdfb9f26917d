"""How the CUDA kernels are built, loaded and bound, on a machine without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cmrfast
from cmrfast.ops._backend import STATUS
from tests.support import cuda_on_host
from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "packaging"))
import ptxas_report
import toolchain

LIBRARY = sorted(Path(cmrfast.__file__).parent.glob("_cuda.*"))
WITH_CUDA = """
import torch, warnings
warnings.simplefilter("error")
torch.version.cuda = "13.0"
from cmrfast.ops import backends
from cmrfast.ops._backend import STATUS, kernel_of
from cmrfast.ops._op import OPS
"""
built = pytest.mark.skipif(not LIBRARY, reason="built without CUDA kernels")


@pytest.fixture(scope="module")
def beside_cuda(tmp_path_factory):
    """Run Python as if torch had CUDA, a stand-in in the place of libtorch_cuda if it has none."""
    folder = tmp_path_factory.mktemp("stand_in")
    (folder / "stand_in.cpp").write_text(
        'extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n'
    )
    command = [*toolchain.find_compiler(), "-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so"]
    library = folder / "libtorch_cuda.so"
    if torch.version.cuda is None:
        subprocess.run([*command, folder / "stand_in.cpp", "-o", library], check=True)

    def run(code):
        folders = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))
        env = {**os.environ, "CMRFAST_BACKEND": "native", "LD_LIBRARY_PATH": folders}
        done = subprocess.run(
            [sys.executable, "-c", WITH_CUDA + code], capture_output=True, text=True, env=env
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout.strip()

    return run


@built
def test_every_kernel_is_bound_for_cuda(beside_cuda):
    code = "print(*sorted(n for n in OPS if kernel_of(n, 'CUDA') == 'native'))"
    assert beside_cuda(code).split() == sorted(cuda_on_host.bound_kernels())


@built
def test_loaded_kernels_take_halves(beside_cuda):
    code = "print({'cuda' in op.half_devices for op in OPS.values()})"
    assert beside_cuda(code) == "{True}"


@built
def test_build_info_names_the_architectures():
    from cmrfast import _C

    architectures = _C.build_info()["cuda"].split()
    assert architectures
    assert all(name.startswith(("sm_", "compute_")) for name in architectures)


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA")
def test_torch_without_cuda_is_the_reason_for_no_cuda_kernels():
    if STATUS.backend == "auto":
        assert STATUS.cuda == f"torch {torch.__version__} has no CUDA"


@pytest.fixture
def environment(monkeypatch):
    for name in ("CMRFAST_CUDA", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def torch_folder(tmp_path, environment):
    """Folders of a torch with CUDA and of an nvcc that knows three architectures."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libtorch_cuda.so").touch()
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho compute_80 compute_90 compute_120\n")
    nvcc.chmod(0o755)
    return tmp_path


def test_nvcc_is_used_where_torch_has_cuda(torch_folder, environment):
    environment.setenv("PATH", str(torch_folder / "bin"))
    assert toolchain.find_nvcc(torch_folder) == (torch_folder / "bin/nvcc", "")
    (torch_folder / "lib/libtorch_cuda.so").unlink()
    assert toolchain.find_nvcc(torch_folder) == (None, "torch has no CUDA")


def test_cuda_home_comes_before_the_path(torch_folder, environment):
    environment.setenv("CUDA_HOME", str(torch_folder))
    environment.setenv("PATH", "")
    assert toolchain.find_nvcc(torch_folder)[0] == torch_folder / "bin/nvcc"


def test_without_nvcc_only_require_is_an_error(torch_folder, environment):
    environment.setenv("PATH", "")
    assert toolchain.find_nvcc(torch_folder) == (None, "nvcc was not found")
    environment.setenv("CMRFAST_CUDA", "require")
    with pytest.raises(SystemExit, match="CMRFAST_CUDA=require, but nvcc is neither in CUDA_HOME"):
        toolchain.find_nvcc(torch_folder)


def test_cuda_can_be_refused_and_a_wrong_word_is_named(torch_folder, environment):
    environment.setenv("CMRFAST_CUDA", "0")
    assert toolchain.find_nvcc(torch_folder) == (None, "CMRFAST_CUDA=0")
    environment.setenv("CMRFAST_CUDA", "yes")
    with pytest.raises(SystemExit, match="must be one of auto, 0, require; got 'yes'"):
        toolchain.find_nvcc(torch_folder)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (None, ["sm_80", "sm_90", "compute_90"]),
        ("9.0", ["sm_90"]),
        ("7.0 8.0;9.0a+PTX", ["sm_80", "sm_90a", "compute_90a"]),
        ("12.0", ["sm_120"]),
    ],
)
def test_architectures_are_those_of_torch_cuda_arch_list(torch_folder, environment, wanted, names):
    if wanted:
        environment.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    assert toolchain.gpu_architectures(torch_folder / "bin/nvcc") == names


def test_an_architecture_that_nvcc_does_not_know_is_skipped_aloud(
    torch_folder, environment, capsys
):
    environment.setenv("TORCH_CUDA_ARCH_LIST", "7.0")
    with pytest.raises(SystemExit, match=r"nvcc knows none of TORCH_CUDA_ARCH_LIST=7\.0"):
        toolchain.gpu_architectures(torch_folder / "bin/nvcc")
    assert "nvcc does not know architecture 7.0; skipped" in capsys.readouterr().err


REPORT = """
ptxas info    : Compiling entry function '_Z1fv' for 'sm_80'
ptxas info    : Function properties for _Z1fv
    8 bytes stack frame, {stores} bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 400 bytes cmem[0]
"""


@pytest.mark.parametrize(("stores", "code"), [(8, 0), (80, 1)])
def test_a_spill_ends_the_report_with_an_error(tmp_path, stores, code):
    (tmp_path / "log").write_text(REPORT.format(stores=stores))
    command = [sys.executable, ROOT / "packaging/ptxas_report.py", tmp_path / "log"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == code, run.stderr
    assert "sm_80: 1 kernels, at most 40 registers and 2048 bytes of shared memory" in run.stdout
    assert ("sm_80 spills 84 bytes: f()" in run.stdout) == bool(code)


def test_a_report_of_no_kernel_is_an_error(tmp_path):
    assert ptxas_report.kernels("nothing") == []
    (tmp_path / "log").touch()
    command = [sys.executable, ROOT / "packaging/ptxas_report.py", tmp_path / "log"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert "tells of no kernel" in run.stderr

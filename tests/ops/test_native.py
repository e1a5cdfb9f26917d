"""Which kernels are loaded, and what is said when they are not."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cmrfast
from cmrfast import ops
from cmrfast.ops import _backend
from cmrfast.ops._backend import STATUS

PACKAGE = Path(cmrfast.__file__).parent
native = pytest.mark.skipif(STATUS.cpu_level is None, reason="native kernels are not in use")


def run_python(code, package=None, **environment):
    env = {**os.environ, "CMRFAST_BACKEND": "auto", "CMRFAST_CPU_LEVEL": "", **environment}
    if package is not None:
        env["PYTHONPATH"] = str(package)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=package)


@pytest.fixture
def copied_package(tmp_path):
    """A copy of the package's Python files, without any library."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "cmrfast", ignore=ignore)
    return tmp_path


def test_backends_name_every_public_op():
    public = {
        "extract_patches",
        "window_counts",
        "merge_patches",
        "affine_sample",
        "warp_pair",
        "resample",
        "sample_patches",
        "dice_ce_sums",
        "nt_xent",
    }
    assert public <= set(ops.backends())
    assert public <= set(ops.__all__)


@native
def test_every_op_runs_native_kernels_on_the_cpu():
    assert {row["cpu"] for row in ops.backends().values()} == {"native"}


def test_reference_backend_loads_no_kernel():
    code = "from cmrfast import ops; print({r['cpu'] for r in ops.backends().values()})"
    run = run_python(code, CMRFAST_BACKEND="reference")
    assert run.stdout.strip() == "{'reference'}"
    assert run.stderr == ""


def test_unknown_backend_is_refused():
    run = run_python("import cmrfast.ops", CMRFAST_BACKEND="fast")
    assert (
        "CMRFAST_BACKEND: must be one of auto, native, triton, reference; got 'fast'" in run.stderr
    )


def test_pure_python_install_says_so_once_and_works(copied_package):
    code = "import torch; from cmrfast import ops; print(ops.cover_starts((8, 8), (4, 4), 2).shape)"
    run = run_python(code, package=copied_package)
    assert run.stdout.strip() == "torch.Size([9, 2])"
    assert run.stderr.count("installed as pure Python; every op runs its reference") == 1


def test_an_install_whose_build_gave_up_says_why(copied_package):
    (copied_package / "cmrfast" / "unbuilt.txt").write_text("no C++ compiler was found\n")
    run = run_python("import cmrfast.ops", package=copied_package)
    said = "installed without native kernels: no C++ compiler was found; every op runs"
    assert run.stderr.count(said) == 1


def test_a_checkout_without_kernels_says_how_to_build_them(copied_package):
    (copied_package / "setup.py").touch()
    run = run_python("import cmrfast.ops", package=copied_package)
    assert f"this is the source in {copied_package}, where no kernels are built" in run.stderr


def test_native_backend_without_libraries_is_an_error(copied_package):
    run = run_python("import cmrfast.ops", package=copied_package, CMRFAST_BACKEND="native")
    assert "CMRFAST_BACKEND=native, but installed as pure Python" in run.stderr


@native
def test_library_that_does_not_load_names_torch_and_the_way_out(copied_package):
    for library in PACKAGE.glob("*.so"):
        target = copied_package / "cmrfast" / library.name
        if library.name.startswith("_C"):
            shutil.copy(library, target)
        else:
            target.write_bytes(b"not a library")
    run = run_python("from cmrfast import ops; print('works')", package=copied_package)
    assert run.stdout.strip() == "works"
    assert "the native kernels do not load beside torch " in run.stderr
    assert "pip install --force-reinstall --no-deps ." in run.stderr


@native
@pytest.mark.parametrize("level", ["baseline", "avx2"])
def test_every_cpu_level_passes_the_contract(level):
    if level == "avx2" and STATUS.cpu_level == "baseline":
        pytest.skip("this processor has no AVX2")
    if not list(Path(cmrfast.__file__).parent.glob(f"_cpu_{level}.*")):
        pytest.skip(f"built without the level {level}; CMRFAST_CPU_LEVELS=all builds it")
    contract = str(Path(__file__).parent / "test_contract.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", contract, "-k", "matches or gradients"]
    env = {**os.environ, "CMRFAST_CPU_LEVEL": level}
    run = subprocess.run(command, capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stdout


def test_the_widest_level_that_was_built_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(_backend, "_PACKAGE", tmp_path)
    assert _backend._widest_level("avx2") == "avx2"  # none was built: a message names it
    for built, supported, level in (
        ("baseline", "avx512", "baseline"),
        ("avx512", "avx2", "baseline"),
        ("avx2", "avx512", "avx512"),
        ("avx2", "avx2", "avx2"),
    ):
        (tmp_path / f"_cpu_{built}.so").touch()
        assert _backend._widest_level(supported) == level


@native
def test_unknown_cpu_level_names_those_that_were_built():
    run = run_python("import cmrfast.ops", CMRFAST_CPU_LEVEL="sse9", CMRFAST_BACKEND="native")
    assert "no kernel library for CPU level 'sse9'; built are: " in run.stderr
    assert str(STATUS.cpu_level) in run.stderr


def test_a_cpu_level_that_was_not_built_says_how_to_build_it(monkeypatch, tmp_path):
    monkeypatch.setattr(_backend, "_PACKAGE", tmp_path)
    for level in ("avx512", "avx2"):
        (tmp_path / f"_cpu_{level}.so").touch()
    wanted = (
        "no kernel library for CPU level 'baseline'; built are: avx2, avx512; every op runs its "
        "reference; to build it, in cmrfast's source folder: "
        "CMRFAST_CPU_LEVELS=baseline pip install --force-reinstall --no-deps ."
    )
    with pytest.raises(ImportError, match=re.escape(wanted)):
        _backend._cpu_library("baseline")


def test_import_touches_no_op_and_no_torch():
    run = run_python("import sys, cmrfast; print('torch' in sys.modules)")
    assert run.stdout.strip() == "False"

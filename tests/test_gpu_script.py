"""A dry run of benchmarks/gpu.sh on the CPU, on a machine as bare as one with a GPU may be.

There is no git, and of Python packages only what the script says it needs.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytest.importorskip("pytest_benchmark", reason="the extra [bench] is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("timeout"), reason="gpu.sh needs GNU timeout"),
]

ABSENT = (
    *("nibabel", "monai", "kornia", "torchio", "SimpleITK", "scipy", "pytorch_metric_learning"),
    *("hypothesis", "safetensors", "matplotlib", "rich", "typer", "pydicom", "isal"),
)
HIDE = f"""
import importlib.util, sys

def is_absent(name):
    return name.partition(".")[0] in {ABSENT!r}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if is_absent(name):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if is_absent(name) else find_spec(name, *a)
sys.meta_path.insert(0, Absent())
"""
#: Waits before the workload N4k, as for a compiler or a kernel that hangs.
HANG = """
import threading

def pytest_runtest_setup(item):
    if "N4k" in item.name:
        threading.Event().wait()
"""


@pytest.fixture
def bare(tmp_path):
    """Run stages of gpu.sh; returns what they printed and the folder that they wrote into."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "mkdir", "tee", "timeout", "sed", "grep", "tail"):
        (tools / tool).symlink_to(shutil.which(tool))
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(HIDE)
    (modules / "hang.py").write_text(HANG)
    python = tools / "python3"  # not a link, which would not find this environment
    python.write_text(f'#!{shutil.which("bash")}\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)

    def run(*stages, pytest_options="", **environment):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "CMRFAST"))}
        paths = filter(None, (str(modules), os.environ.get("PYTHONPATH")))
        env |= {"PATH": str(tools), "PYTHONPATH": os.pathsep.join(paths), "DEVICE": "cpu"}
        env |= environment
        env["TORCHDYNAMO_DISABLE"] = "1"  # compiling would take longer than the rest
        env["PYTEST_ADDOPTS"] = f"-p no:hypothesispytest {pytest_options}"
        out = tmp_path / "out"
        command = ["bash", ROOT / "benchmarks" / "gpu.sh", out, *stages]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
        return done.stdout + done.stderr, out

    return run


def recorded(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_benchmark_that_hangs_is_interrupted_and_its_results_are_kept(bare):
    text, out = bare("bench", pytest_options="-p hang", LIMIT_S="75", SELECT="N32 or N4k")
    machine, *results = recorded(out / "auto.jsonl")
    assert machine["machine_info"]["commit"] == ""
    assert [r["extra_info"]["workload"] for r in results] == ["N32"], text
    assert "KeyboardInterrupt" in text
    assert "failed: bench" in text
    assert "nt_xent 32 (N32)" in (out / "table.txt").read_text()
    assert len(list(out.iterdir())) <= 8


def test_kernels_of_one_kind_are_tabled_where_the_others_do_not_run(bare):
    text, out = bare("kernels", SELECT="N32")
    assert "CMRFAST_BACKEND=triton, but" in text
    assert [r["extra_info"]["workload"] for r in recorded(out / "native.jsonl")[1:]] == ["N32"]
    assert "| N32 | " in (out / "kernels.txt").read_text()


def test_every_selection_of_tests_finds_some(bare):
    text, _ = bare("contract", "large", "sanitize", pytest_options="--collect-only")
    assert "contract" not in text.rpartition("failed: ")[2], text
    assert "test_contract.py::test_matches_reference[torch.float32-cpu-affine_sample]" in text
    assert "test_large.py::test_nt_xent_of_more_than_2_to_31_pairs[cpu]" in text
    assert "there is no compute-sanitizer here" in text

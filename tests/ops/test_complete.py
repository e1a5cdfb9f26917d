"""Every op has all that it needs: samples, a Triton kernel, a block size, a page, a benchmark."""

import ast
import json
from dataclasses import replace

import pytest
import torch

from cmrfast.ops._op import OPS, Op
from tests.support.cuda_on_host import bound_kernels
from tests.support.op_calls import samples
from tests.support.op_samples import SAMPLES
from tests.support.paths import ROOT

TRITON = ROOT / "cmrfast/ops/triton"
#: Ops whose kernels have no block size to tune.
FIXED_BLOCKS = {"dice_ce_loss", "vox_from_vox"}
#: Ops that share the rows of another.
SHARED_ROWS = {
    "extract_patches_into": "extract_patches",
    "merge_add": "merge_patches",
    "nt_xent_symmetric": "nt_xent",
}


def registered_kernels() -> set[str]:
    """Names that the Triton sources register, read without importing Triton."""
    names = set()
    for source in TRITON.glob("[a-z]*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.FunctionDef):
                names |= {
                    ast.literal_eval(call.args[0])
                    for call in node.decorator_list
                    if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "register"
                }
    return names


def workloads() -> dict[str, str]:
    """Public op to builder, read without importing the benchmarks' peers."""
    tree = ast.parse((ROOT / "benchmarks/workloads/__init__.py").read_text())
    measures: dict[str, str] = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "MEASURES"
    )
    return measures


def builders() -> str:
    """The source of the tables that the benchmarks run."""
    folder = ROOT / "benchmarks/workloads"
    text, loading = ((folder / name).read_text() for name in ("__init__.py", "loading.py"))
    return (
        text.partition("WORKLOADS: ")[2].partition("MEASURES = ")[0]
        + text.partition("ON_GPU: ")[2]
        + loading.partition("LOADING: ")[2]
    )


def gaps(op: Op) -> list[str]:
    """What an op lacks."""
    rows = json.loads((TRITON / "configs.json").read_text())
    docs = (ROOT / "docs/api/ops.md").read_text().split()
    measured = workloads()
    missing = []
    if op.name not in SAMPLES:
        missing.append("samples in tests/support/op_samples")
    if not op.cpu_only:
        if op.name not in registered_kernels():
            missing.append("a Triton kernel in cmrfast/ops/triton")
        if op.name not in FIXED_BLOCKS and SHARED_ROWS.get(op.name, op.name) not in rows:
            missing.append("rows in cmrfast/ops/triton/configs.json")
    for public in op.of:
        if f"cmrfast.ops.{public}.{public}" not in docs:
            missing.append(f"{public} in docs/api/ops.md")
        if public not in measured or measured[public] not in builders():
            missing.append(f"{public} in benchmarks/workloads")
    return missing


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_an_op_has_all_that_it_needs(op):
    assert gaps(op) == []


def test_nothing_is_left_of_an_op_that_is_gone():
    expected = {name for name, op in OPS.items() if not op.cpu_only}
    assert set(SAMPLES) == set(OPS)
    assert registered_kernels() == expected
    assert bound_kernels() < expected
    assert set(workloads()) == {name for op in OPS.values() for name in op.of}


def test_a_made_up_op_lacks_everything():
    made_up = replace(OPS["nt_xent"], name="shear_fields", of=("shear_fields",))
    assert [gap.split()[0] for gap in gaps(made_up)] == [
        *("samples", "a", "rows"),
        *("shear_fields", "shear_fields"),
    ]


def test_a_made_up_private_op_lacks_only_samples():
    made_up = replace(OPS["same_conv2d"], name="shear_kernel")
    assert gaps(made_up) == ["samples in tests/support/op_samples"]


@pytest.mark.parametrize("place", ["benchmarks/workloads", "docs/api/ops.md"])
def test_a_public_function_without_an_entry_is_seen(place):
    extended = replace(OPS["nt_xent"], of=("nt_xent", "shear_fields"))
    assert f"shear_fields in {place}" in gaps(extended)


def test_ops_for_the_cpu_alone_are_not_called_on_a_gpu():
    for op in OPS.values():
        if op.cpu_only:
            with pytest.raises(pytest.skip.Exception):
                samples(op, "cuda", torch.float32)

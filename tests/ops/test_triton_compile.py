"""Every Triton kernel compiles for sm_80 and sm_90, with every block size in the committed table.

It fits an architecture's shared memory, and keeps its values in registers: no stack, no spills.

No GPU: the launching functions run on CPU tensors with the launch itself replaced by a record of
kernel and arguments; what was recorded is then compiled ahead of time.
"""

import os

import pytest
import torch

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from cmrfast.ops._op import OPS  # noqa: E402
from cmrfast.ops.triton import KERNELS, _launch  # noqa: E402
from tests.support import ahead  # noqa: E402
from tests.support.op_samples import SAMPLES  # noqa: E402

FLOATS = [torch.float32, torch.float64]
HALVES = [torch.float16, torch.bfloat16]
#: Bytes of stack that ptxas trades on its own account for one more block at a time.
TRADED = 64
#: What Triton 3.6, but not 3.9, spills of contract_axis.
SPILLED_CONTRACT = 448
every_architecture = pytest.mark.parametrize("architecture", ahead.SHARED_LIMIT)
every_op = pytest.mark.parametrize("name", KERNELS)


def compile_all(launches, architecture, folder):
    """Compile what was launched; each within the architecture's shared memory and its registers."""
    assert launches
    for launch in launches.values():
        built = launch.compiled(architecture)
        assert built.asm["cubin"]
        assert built.metadata.shared <= ahead.SHARED_LIMIT[architecture], launch
        assert ahead.stack_bytes(built.asm["cubin"], folder) <= stack_limit(launch), launch


def stack_limit(launch):
    """The bytes of stack that a kernel may have."""
    if launch.name == "_contract" and triton.__version__.startswith("3.6."):
        return SPILLED_CONTRACT
    return TRADED


def call(name, dtype, count=None):
    torch.manual_seed(0)
    for args in list(SAMPLES[name]("cpu", dtype))[:count]:
        KERNELS[name](*args)
    if name == "nt_xent":  # rows of a usual length, and some longer than one chunk of columns
        for length in (128, 700):
            pair_rows(length, dtype)


def pair_rows(length, dtype):
    rows = torch.zeros(33, length, dtype=dtype)
    KERNELS["nt_xent"](rows, rows, torch.arange(33), 0.07, None, True)


def test_every_kernel_has_a_launcher_for_every_op():
    assert KERNELS.keys() == {name for name in SAMPLES if not OPS[name].cpu_only}


def test_a_spill_is_seen(tmp_path):
    @triton.jit
    def scan(x_ptr):
        tile = tl.arange(0, 256)[:, None] * 256 + tl.arange(0, 256)
        tl.store(x_ptr + tile, tl.cumsum(tl.load(x_ptr + tile), 0))

    source = triton.compiler.ASTSource(scan, {"x_ptr": "*fp64"}, {}, {})
    built = triton.compile(source, GPUTarget("cuda", 90, 32), {"num_warps": 4})
    assert ahead.stack_bytes(built.asm["cubin"], tmp_path) > TRADED


@every_op
def test_compiles(monkeypatch, name, tmp_path):
    with ahead.on_gpu(monkeypatch, 90), ahead.recorded(monkeypatch) as launches:
        call(name, torch.float32, count=1)
    compile_all(launches, 90, tmp_path)


@pytest.mark.slow
@every_op
@every_architecture
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_compiles_for_all_samples(monkeypatch, name, dtype, architecture, tmp_path):
    with ahead.on_gpu(monkeypatch, architecture), ahead.recorded(monkeypatch) as launches:
        call(name, dtype)
    compile_all(launches, architecture, tmp_path)


@pytest.mark.slow
@every_architecture
@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
@pytest.mark.parametrize("op", _launch.table())
def test_compiles_with_every_row_of_the_table(monkeypatch, op, dtype, architecture, tmp_path):
    with ahead.recorded(monkeypatch) as launches:
        for index, row in enumerate(rows_of(op, dtype, architecture)):
            with ahead.on_gpu(monkeypatch, architecture, {op: index}):
                if op.startswith("nt_xent"):
                    pair_rows(min(700, row.get("up_to", {}).get("d", 700)), dtype)
                else:
                    call(op, dtype, count=1)
    compile_all(launches, architecture, tmp_path)


def rows_of(op, dtype, architecture):
    return [row for row in _launch.table()[op] if ahead.serves(row, dtype, architecture)]

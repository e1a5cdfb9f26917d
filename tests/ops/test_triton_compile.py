"""Every Triton kernel compiles for sm_80 and sm_90, with every block size in the committed table.

It fits an architecture's shared memory, and keeps its values in registers: no stack, no spills.

No GPU: the launching functions run on CPU tensors with the launch itself replaced by a record of
kernel and arguments; what was recorded is then compiled ahead of time.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction, mangle_type  # noqa: E402

from cmrfast.ops._op import OPS  # noqa: E402
from cmrfast.ops.triton import KERNELS, _launch  # noqa: E402
from tests.support.op_samples import SAMPLES  # noqa: E402

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may have
FLOATS = [torch.float32, torch.float64]
HALVES = [torch.float16, torch.bfloat16]
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
#: Bytes of stack that ptxas trades on its own account for one more block at a time.
TRADED = 64
#: What Triton 3.6, but not 3.9, spills of contract_axis.
SPILLED_CONTRACT = 448
#: What the tiles of nt_xent may spill, of which float32 has too few registers,
SPILLED = {"*fp32": 640}
#: and in rows of no whole 16-byte words, whose values are loaded one by one.
SPILLED_UNALIGNED = 5376
every_architecture = pytest.mark.parametrize("architecture", SHARED_LIMIT)
every_op = pytest.mark.parametrize("name", KERNELS)


@pytest.fixture
def launches(monkeypatch):
    """What the launching functions launch: (kernel, signature, constants, attributes, options)."""
    recorded = {}

    def record(self, *args, grid, warmup, **kwargs):
        compiled = _as_compiled(self, args, kwargs)
        recorded.setdefault((self.fn.__name__, str(compiled[1:])), compiled)

    monkeypatch.setattr(JITFunction, "run", record)
    return recorded


@pytest.fixture
def table_row(monkeypatch):
    """Make the table say the same to everyone: its rows as given, others their first."""

    def choose(op, index):
        def row(name, values, **_):
            rows = rows_of(name, values.dtype)
            return rows[index if name == op else 0]["blocks"]

        for module in vars(__import__("cmrfast.ops.triton", fromlist=["triton"])).values():
            if hasattr(module, "block_sizes"):
                monkeypatch.setattr(module, "block_sizes", row)

    return choose


def rows_of(name, dtype):
    """The rows that a GPU may choose for a dtype: none behind one that serves every size of it."""
    found = []
    for row in _launch.table()[name]:
        if row.get("device") != "cpu" and row.get("dtype", str(dtype)[6:]) == str(dtype)[6:]:
            found.append(row)
            if "device" not in row and not row.get("up_to"):
                break
    return found


def _as_compiled(kernel, args, kwargs):
    """The specialisation Triton itself would compile for these arguments."""
    given = dict(zip(kernel.arg_names, args, strict=False))
    given |= {k: v for k, v in kwargs.items() if k in kernel.arg_names}
    options = {k: v for k, v in kwargs.items() if k not in kernel.arg_names}
    signature, constants, attributes = {}, {}, {}

    def specialise(value, path, annotation):
        if isinstance(value, tuple):
            return tuple(specialise(v, (*path, i), "") for i, v in enumerate(value))
        plain_integer = isinstance(value, int) and not annotation
        if value is None or (plain_integer and value == 1):
            constants[path] = value
            return "constexpr"
        if isinstance(value, torch.Tensor) or (plain_integer and value % 16 == 0):
            attributes[path] = [["tt.divisibility", 16]]
        return annotation or mangle_type(value)

    for position, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[(position,)] = "constexpr", value
        else:
            signature[parameter.name] = specialise(value, (position,), parameter.annotation_type)
    return kernel, signature, constants, attributes, options


def compile_all(launches, architecture, folder):
    """Compile what was launched; each within the architecture's shared memory and its registers."""
    assert launches
    for kernel, signature, constants, attributes, options in launches.values():
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
        built = triton.compile(source, GPUTarget("cuda", architecture, 32), options)
        assert built.asm["cubin"]
        assert built.metadata.shared <= SHARED_LIMIT[architecture], (kernel, constants)
        stack = stack_bytes(built.asm["cubin"], folder)
        assert stack <= stack_limit(kernel, signature, attributes), (kernel, signature, constants)


def stack_bytes(cubin, folder):
    """Bytes a thread keeps in memory for want of registers: its stack, spills included."""
    (folder / "kernel.cubin").write_bytes(cubin)
    command = [CUOBJDUMP, "-res-usage", folder / "kernel.cubin"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return max(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", said))


def stack_limit(kernel, signature, attributes):
    """The bytes of stack that a kernel may have."""
    if kernel.fn.__name__ == "_contract" and triton.__version__.startswith("3.6."):
        return SPILLED_CONTRACT
    if kernel.fn.__name__ not in ("_anchor_tiles", "_candidate_tiles"):
        return TRADED
    if (kernel.arg_names.index("D"),) not in attributes:
        return SPILLED_UNALIGNED
    return SPILLED.get(signature[kernel.arg_names[0]][0], TRADED)


def launch(name, dtype, count=None):
    torch.manual_seed(0)
    for args in list(SAMPLES[name]("cpu", dtype))[:count]:
        KERNELS[name](*args)
    if name == "nt_xent":  # rows of a usual length, of which several values are loaded at a time
        pair_rows(128, dtype)


def pair_rows(length, dtype):
    rows = torch.zeros(33, length, dtype=dtype)
    KERNELS["nt_xent"](rows, rows, torch.arange(33), 0.07, True)


def test_every_kernel_has_a_launcher_for_every_op():
    assert KERNELS.keys() == {name for name in SAMPLES if not OPS[name].cpu_only}


def test_a_spill_is_seen(tmp_path):
    @triton.jit
    def scan(x_ptr):
        tile = tl.arange(0, 256)[:, None] * 256 + tl.arange(0, 256)
        tl.store(x_ptr + tile, tl.cumsum(tl.load(x_ptr + tile), 0))

    source = ASTSource(fn=scan, signature={"x_ptr": "*fp64"}, constexprs={}, attrs={})
    built = triton.compile(source, GPUTarget("cuda", 90, 32), {"num_warps": 4})
    assert stack_bytes(built.asm["cubin"], tmp_path) > TRADED


@every_op
def test_compiles(launches, table_row, name, tmp_path):
    table_row(name, 0)
    launch(name, torch.float32, count=1)
    compile_all(launches, 90, tmp_path)


@pytest.mark.slow
@every_op
@every_architecture
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_compiles_for_all_samples(launches, table_row, name, dtype, architecture, tmp_path):
    table_row(name, 0)
    launch(name, dtype)
    compile_all(launches, architecture, tmp_path)


@pytest.mark.slow
@every_architecture
@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
@pytest.mark.parametrize("op", _launch.table())
def test_compiles_with_every_row_of_the_table(
    launches, table_row, op, dtype, architecture, tmp_path
):
    launcher = "nt_xent" if op.startswith("nt_xent") else op
    for index in range(len(rows_of(op, dtype))):
        table_row(op, index)
        launch(launcher, dtype, count=1)
        if launcher == "nt_xent":  # rows longer than one chunk of columns
            pair_rows(700, dtype)
    compile_all(launches, architecture, tmp_path)

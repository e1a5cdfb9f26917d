"""The machine code of the GPU kernels: instructions of hot loops, and what may not be there.

No GPU: Triton kernels are compiled ahead of time, CUDA kernels were built before. The table is
benchmarks/budgets.py.
"""

import os
import re
import subprocess
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import cmrfast
from benchmarks.budgets import BUDGETS
from tests.support import sass
from tests.support.paths import ROOT

if sass.find_cuobjdump() is None:
    pytest.skip("there is no cuobjdump, as in Triton", allow_module_level=True)
COMPILES = find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") != "1"
LIBRARY = sorted(Path(cmrfast.__file__).parent.glob("_cuda.*"))
#: The versions of Triton that CI compiles with: the one that the budgets count, and the oldest.
COUNTED, OLDEST = (
    re.search(r"^triton==(\S+)", (ROOT / f"tests/support/{name}.txt").read_text(), re.M)[1]
    for name in ("requirements-triton", "requirements-triton-3.6")
)
TRITON = version("triton") if COMPILES else COUNTED
if COMPILES:
    from cmrfast.ops.triton import KERNELS
    from tests.support import ahead


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def dice_2d():
    logits, labels = empty(640, 4, 224 * 224), empty(640, 224 * 224, dtype=torch.int64)
    KERNELS["dice_ce_sums"](logits, labels, 0, -100, 1e-4, True)
    KERNELS["dice_ce_sums_backward"](empty(640, 4, 4), logits, labels, 0, -100, 1e-4)


def dice_3d():
    logits, masks = empty(640, 5, 56**3), empty(640, 5, 56**3, dtype=torch.uint8)
    KERNELS["dice_ce_sums"](logits, masks, 1, -100, 1e-4, False)
    KERNELS["dice_ce_sums_backward"](empty(640, 5, 4), logits, masks, 1, -100, 1e-4)


def pairs_bfloat16(dtype=torch.bfloat16):
    rows = empty(32768, 128, dtype=dtype)
    KERNELS["nt_xent"](rows, rows, empty(32768, dtype=torch.int64), 0.07, None, True)


def pairs_float32():
    pairs_bfloat16(torch.float32)


def symmetric_bfloat16():
    rows = empty(32768, 128, dtype=torch.bfloat16)
    KERNELS["nt_xent_symmetric"](rows, rows, 0.07, True)


def argmax_3d():
    logits, matrix = empty(14, 96, 128, 128), empty(3, 4, dtype=torch.float64)
    KERNELS["resample_argmax"](logits, matrix, (128, 256, 256), 0, torch.uint8)


def noise_3d(steps=0b01):
    images, parameters = empty(8, 1, 128, 128, 128), empty(8, 1, 12, dtype=torch.float64)
    KERNELS["augment_intensity"](images, 0, empty(8, dtype=torch.int64), parameters, steps)


def blur_3d():
    noise_3d(steps=0b10)


def sample_float32(source=torch.float32, mode=0):
    buffer, table = empty(2 * 200**3, dtype=source), empty(1, 4, dtype=torch.int64)
    poses = empty(64, 3), empty(64, 3, 3), empty(64, dtype=torch.int64)
    numbers = empty(1, 2, dtype=torch.float64), empty(1, 2, dtype=torch.float64)
    size = (128, 128, 128)
    KERNELS["sample_patches"](
        buffer, table, (), *poses, *numbers, 2, size, mode, 0.0, torch.float32
    )


def sample_int16():
    sample_float32(torch.int16)


CASES = {
    call.__name__: call
    for call in (
        *(dice_2d, dice_3d, pairs_bfloat16, pairs_float32, symmetric_bfloat16),
        *(argmax_3d, noise_3d, blur_3d, sample_float32, sample_int16),
    )
}


@cache
def triton_code(case, folder):
    patch = pytest.MonkeyPatch()
    with ahead.on_gpu(patch, 90), ahead.recorded(patch) as launches:
        CASES[case]()
    codes = {}
    for launch in launches.values():
        file = folder / f"{case}-{launch.name}.cubin"
        file.write_bytes(launch.compiled(90).asm["cubin"])
        (codes[launch.name],) = sass.disassemble(file, 90).values()
    return codes


@cache
def cuda_code():
    codes = sass.disassemble(LIBRARY[0], 90)
    names = subprocess.check_output(["c++filt", "-p"], input="\n".join(codes), text=True)
    return {
        name.rpartition("::")[2].removeprefix("void "): code
        for name, code in zip(names.splitlines(), codes.values(), strict=True)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cubins")


@pytest.fixture(params=BUDGETS, ids=lambda b: f"{b.kernel}-{b.case}")
def budget(request):
    if request.param.case == "cuda" and not LIBRARY:
        pytest.skip("built without CUDA kernels")
    if request.param.case != "cuda" and not COMPILES:
        pytest.skip("needs Triton's compiler")
    return request.param


@pytest.fixture
def code(budget, folder):
    codes = cuda_code() if budget.case == "cuda" else triton_code(budget.case, folder)
    return codes[budget.kernel]


@pytest.fixture
def loop(budget, code):
    return code if budget.loop is None else code.loops[budget.loop]


def test_the_hot_loop_is_within_its_budget(budget, loop):
    counted = budget.case == "cuda" or TRITON == COUNTED
    other = not counted and TRITON != OLDEST  # one that torch brought, which CI has not seen
    assert len(loop) <= budget.instructions * (1.25 if other else 1)
    if counted:
        assert len(loop) > 0.9 * budget.instructions, "lower the budget"


def test_the_hot_loop_stays_in_registers_and_in_float32(budget, loop):
    assert loop.count("calls") == loop.count("local memory") == 0
    assert loop.count("float64") <= budget.float64


def test_memory_is_read_and_written_in_words_of_16_bytes(budget, loop):
    if not budget.aligned:
        pytest.skip("gathers")
    assert loop.count("128-bit loads") > 0
    assert loop.count("stores") == loop.count("128-bit stores")
    if not budget.tensor_flops:  # whose rows also have a norm each
        assert loop.count("loads") == loop.count("128-bit loads")


def test_matrix_products_run_on_the_tensor_cores_of_hopper(budget, loop):
    if not budget.tensor_flops:
        pytest.skip("multiplies no matrices")
    assert sum(n for name, n in loop.names.items() if name.startswith("HGMMA")) > 0
    assert loop.count("tensor cores") == loop.count("tensor cores of Hopper")


def test_instructions_are_counted_by_kind_and_loop():
    listing = """
        Function : kernel
        /*0000*/                   LDG.E.128 R4, [R2.64] ;   /* 0x0 */
        /*0010*/              @!P0 DADD R4, R4, R6 ;
        /*0020*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0030*/                   STL [R1], R4 ;
        /*0040*/               @P1 BRA 0x10 ;
        /*0050*/                   CALL.REL.NOINC 0x90 ;
        /*0060*/                   STG.E [R2.64], R4 ;
        /*0070*/                   RET.REL.NODEC R2 0x0 ;
    """
    (code,) = sass.functions(listing).values()
    assert len(code) == 8
    assert code.count("calls") == code.count("stores") == code.count("128-bit loads") == 1
    (loop,) = code.loops
    assert list(loop.names) == ["DADD", "HGMMA.64x64x16.F32.BF16", "STL", "BRA"]
    assert loop.count("float64") == loop.count("local memory") == loop.count("tensor cores") == 1

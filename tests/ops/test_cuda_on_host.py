"""The CUDA kernels on the CPU, thread by thread, against each op's reference."""

import os
import subprocess
import sys

import pytest
import torch

from cmrfast.ops._op import OPS
from tests.support.op_calls import (
    TOLERANCE,
    assert_close_for_halves,
    bits,
    every_float,
    every_half,
    run,
    samples,
)
from tests.support.op_samples import HALVED
from tests.support.paths import ROOT

cuda_on_host = pytest.importorskip("tests.support.cuda_on_host")
ON_CUDA = {name: OPS[name] for name in sorted(cuda_on_host.bound_kernels())}
every_op = pytest.mark.parametrize("op", ON_CUDA.values(), ids=ON_CUDA.keys())
pytestmark = [
    pytest.mark.slow,  # it compiles all kernels for the CPU first
    pytest.mark.skipif(
        sys.platform != "linux" or cuda_on_host.toolchain.find_compiler() is None,
        reason="fibers need Linux and a C++ compiler",
    ),
]


@pytest.fixture(scope="module")
def kernels():
    return cuda_on_host.load(cuda_on_host.build_kernels())


def planted(fault, sanitize=False, **environment):
    program = cuda_on_host.build([ROOT / "tests/support/cuda_planted.cu"], sanitize, program=True)
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", **environment}
    return subprocess.run([program, fault], capture_output=True, text=True, env=env)


@every_op
@every_float
def test_matches_reference(kernels, op, dtype):
    for args in samples(op, "cpu", dtype):
        rtol, atol = TOLERANCE.get((op.name, dtype), (1.3e-6, 1e-5))
        if dtype == torch.float64:
            rtol, atol = 1e-7, 1e-7
        output, reference = run(getattr(kernels, op.name), args), run(op.reference, args)
        torch.testing.assert_close(output, reference, rtol=rtol, atol=atol, equal_nan=True)


@every_half
@pytest.mark.parametrize("name", sorted(HALVED.keys() & ON_CUDA.keys()))
def test_halves_are_computed_in_float(kernels, name, dtype):
    for args in samples(OPS[name], "cpu", dtype):
        output, reference = run(getattr(kernels, name), args), run(OPS[name].reference, args)
        assert_close_for_halves(output, reference, dtype)


@every_op
def test_same_bits_whatever_order_blocks_and_threads_come_in(kernels, op, monkeypatch):
    kernel = getattr(kernels, op.name)
    for args in samples(op, "cpu", torch.float32)[::3]:
        first = run(kernel, args)
        for order in ("reversed", "shuffled"):
            with monkeypatch.context() as changed:
                changed.setenv("CMRFAST_ON_HOST_ORDER", order)
                assert all(map(torch.equal, bits(first), bits(run(kernel, args))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.int16])
def test_nearest_fills_in_the_images_own_dtype(kernels, dtype):
    images = torch.randint(0, 100, (1, 2, 7, 11)).to(dtype)
    matrix = torch.eye(2, 3, dtype=torch.float64)[None] * 1.7
    args = (images, matrix, (7, 11), 0, 1, 0, 7.0)
    assert torch.equal(kernels.affine_sample(*args), OPS["affine_sample"].reference(*args))


def test_a_gradient_that_is_no_number_stays_where_it_falls(kernels):
    images, grad = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 8, 8)
    matrix = torch.eye(2, 3, dtype=torch.float64)[None]
    grad[0, 0, 2, 3], grad[0, 0, 6, 6] = torch.nan, torch.inf
    got, _ = kernels.affine_sample_backward(grad, images, matrix, 0, 1, 0, True, False)
    assert got.isnan().nonzero().tolist() == [[0, 0, 2, 3]]
    assert got.isinf().nonzero().tolist() == [[0, 0, 6, 6]]
    assert torch.equal(got[grad.isfinite()], grad[grad.isfinite()])


@pytest.mark.parametrize("scale", [1e-280, 1e-30, 1e30, 1e300])
def test_image_gradient_of_any_magnitude(kernels, scale):
    images = torch.randn(1, 2, 5, 7, dtype=torch.float64)
    grad = scale * torch.randn(1, 2, 9, 4, dtype=torch.float64)
    matrix = torch.tensor([[[0.4, 0.1, 0.3], [-0.2, 1.3, 0.7]]], dtype=torch.float64)
    args = (grad, images, matrix, 0, 0, 0, True, False)
    expected, _ = OPS["affine_sample_backward"].reference(*args)
    got, _ = kernels.affine_sample_backward(*args)
    torch.testing.assert_close(got / scale, expected / scale, rtol=1e-12, atol=1e-12)


def scattered(count, shape, size):
    return torch.stack(
        [torch.randint(1 - s, n, (count,)) for n, s in zip(shape, size, strict=True)], 1
    )


@pytest.mark.parametrize(
    ("shape", "size"),
    [((70, 37, 131), (3, 9, 11)), ((66, 150, 9), (7, 9, 5)), ((8300, 131), (40, 41))],
    ids=["3-D", "narrow", "2-D"],
)
def test_many_windows_on_many_tiles_and_slabs(kernels, shape, size):
    start = scattered(300, shape, size)
    patches, weight = torch.randn(300, 1, *size), torch.rand(size)
    args = (patches, start, weight, shape, 0.5)
    torch.testing.assert_close(kernels.merge_patches(*args), OPS["merge_patches"].reference(*args))
    numel = 2 * torch.Size(shape).numel()
    table = torch.tensor([[numel // 2, *shape], [0, *shape]])
    index, flips = torch.arange(300) % 3 - 1, torch.rand(start.shape) < 0.5
    scale = torch.rand(2, 1, dtype=torch.float64)
    args = (patches, table, (), start, index, flips, scale, numel)
    torch.testing.assert_close(
        kernels.extract_patches_backward(*args), OPS["extract_patches_backward"].reference(*args)
    )


@pytest.mark.parametrize("frame", [0, 1, 2])
def test_rows_longer_than_a_run(kernels, frame):
    images, size = torch.randn(1, 2, 5, 1100), (3, 2100)
    matrix = torch.tensor([[[0.9, 0.002, 0.01], [-0.003, 0.8, 0.02]]])
    if frame == 0:
        matrix = torch.tensor([[[1.1, 0.001, 0.4], [0.1, 0.5, 3.3]]])
    args = (images, matrix.double(), size, frame, 0, 0, 0.0)
    torch.testing.assert_close(
        kernels.affine_sample(*args), OPS["affine_sample"].reference(*args), rtol=1e-5, atol=1e-5
    )
    backward = (torch.randn(1, 2, *size), *args[:2], frame, 0, 0, True, True)
    got, expected = (
        call(*backward)
        for call in (
            kernels.affine_sample_backward,
            OPS["affine_sample_backward"].reference,
        )
    )
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    "row", [[2**62, 3, 3], [-1, 3, 3], [0, 2**40, 2**40], [0, -1, 5], [7, 3, 3]]
)
def test_a_volume_beyond_its_buffer_is_not_read(kernels, row):
    buffer, table = torch.ones(9), torch.tensor([row])
    start, index = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    flips = torch.zeros(0, 2, dtype=torch.bool)
    one = torch.ones(1, 1, dtype=torch.float64)
    patches = kernels.extract_patches(
        buffer, table, (), start, index, flips, 0 * one, one, 1, (3, 3), -4.0, torch.float32
    )
    assert (patches == -4).all()
    assert kernels.window_counts(buffer > 0, table, (), start, index, (3, 3)).item() == 0


def test_a_wrong_argument_is_refused_by_name(kernels):
    with pytest.raises(RuntimeError, match="contract_axis: values must be \\(O, n, I\\)"):
        kernels.contract_axis(torch.ones(2, 3), torch.ones(4, 3).double())
    with pytest.raises(RuntimeError, match="affine_sample: values must be floating"):
        kernels.affine_sample(
            torch.ones(1, 1, 4, 4).int(), torch.zeros(1, 2, 3).double(), (2, 2), 0, 0, 0, 0.0
        )
    with pytest.raises(RuntimeError, match="vox_from_vox: affines must be \\(4, 4\\), axes 2 or 3"):
        kernels.vox_from_vox(torch.eye(3), torch.eye(4), 3)
    mask, table = torch.ones(4, dtype=torch.bool), torch.tensor([[0, 2, 2]])
    start = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="volumes have a table or one shape"):
        kernels.window_counts(mask, table, (2, 2), start, start[:0, 0], (1, 1))
    with pytest.raises(RuntimeError, match="contract_axis: values must be float32 or float64"):
        kernels.contract_axis(torch.ones(1, 2, 3).half(), torch.ones(4, 2).double())


def test_a_barrier_that_threads_miss_is_reported():
    fault = planted("barrier")
    assert fault.returncode != 0
    assert "on_host: a barrier was reached by 7 of 64 threads" in fault.stderr


def test_a_result_that_depends_on_the_order_of_blocks_is_seen():
    assert planted("order").stdout == "4\n"
    assert planted("order", CMRFAST_ON_HOST_ORDER="reversed").stdout == "0\n"
    shuffled = planted("order", CMRFAST_ON_HOST_ORDER="shuffled").stdout
    assert shuffled in ("1\n", "2\n", "3\n")


def test_block_sums():
    expected = [256 * i + 8 * 256 * 255 / 2 for i in range(8)]
    assert [float(s) for s in planted("sums").stdout.split()] == expected


def test_division_by_multiplication_is_exact():
    assert planted("divide").stdout == ""


def test_a_planted_overflow_is_reported():
    fault = planted("overflow", sanitize=True)
    assert fault.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in fault.stderr
    assert "write_past_the_end" in fault.stderr


@pytest.mark.slow
def test_no_op_sample_reads_or_writes_out_of_bounds():
    library = cuda_on_host.build_kernels(sanitize=True)
    compiler = cuda_on_host.toolchain.find_compiler()
    preload = [
        subprocess.check_output([*compiler, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    env = {
        **os.environ,
        "LD_PRELOAD": ":".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.support.run_samples", library]
    watched = subprocess.run(command, capture_output=True, text=True, env=env)
    assert watched.returncode == 0, watched.stderr[-4000:]
    assert set(watched.stdout.split()) == set(ON_CUDA)

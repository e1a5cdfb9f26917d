"""The CUDA kernels on the CPU, thread by thread, against each op's reference."""

import pytest
import torch
from op_samples import SAMPLES
from test_ops import TOLERANCE, every_float, every_op, run

cuda_on_host = pytest.importorskip("cuda_on_host")
pytestmark = pytest.mark.skipif(
    cuda_on_host.toolchain.find_compiler() is None, reason="there is no C++ compiler"
)


@pytest.fixture(scope="module")
def kernels():
    sources = [*cuda_on_host.KERNELS, cuda_on_host.SOURCES / "bindings.cpp"]
    return cuda_on_host.load(cuda_on_host.build("kernels", sources))


@every_op
@every_float
def test_matches_reference(kernels, op, dtype):
    torch.manual_seed(0)
    for args in SAMPLES[op.name]("cpu", dtype):
        rtol, atol = TOLERANCE.get((op.name, dtype), (1.3e-6, 1e-5))
        if dtype == torch.float64:
            rtol, atol = 1e-7, 1e-7
        output, reference = run(getattr(kernels, op.name), args), run(op.reference, args)
        torch.testing.assert_close(output, reference, rtol=rtol, atol=atol, equal_nan=True)

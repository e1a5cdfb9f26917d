"""Triton's own way from a call to a launch, with a driver that launches nothing: no GPU.

Arguments are bound and specialised, kernels compiled and loaded, the launcher called: all that
`test_triton_compile.py` goes around.
"""

import os

import pytest
import torch

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter has no driver", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402

from cmrfast.ops.triton import KERNELS  # noqa: E402
from tests.support import ahead  # noqa: E402
from tests.support.op_samples import SAMPLES  # noqa: E402

#: How many kernels a call of an op launches.
LAUNCHES = {
    "affine_sample": 1,
    "affine_sample_backward": 3,
    "augment_intensity": 15,
    "contract_axis": 1,
    "dice_ce_loss": 1,
    "dice_ce_sums": 2,
    "dice_ce_sums_backward": 1,
    "extract_patches": 1,
    "extract_patches_backward": 2,
    "extract_patches_into": 1,
    "merge_add": 1,
    "merge_patches": 1,
    "nt_xent": 7,
    "nt_xent_symmetric": 10,
    "resample_argmax": 1,
    "sample_patches": 1,
    "sample_patches_backward": 2,
    "vox_from_vox": 1,
    "window_counts": 3,
}


class Driver:
    """What Triton asks of a driver, for a GPU that is not there."""

    def __init__(self):
        self.launched = []
        outer = self

        class Launcher:
            def __init__(self, source, metadata):
                self.name = source.fn.__name__

            def __call__(self, *args, **kwargs):
                outer.launched.append(self.name)

        self.launcher_cls = Launcher
        self.utils = self

    def get_device_properties(self, device):
        return {"max_shared_mem": ahead.SHARED_LIMIT[90], "warpSize": 32}

    def load_binary(self, name, kernel, shared, device):
        return 1, 1, 32, 0, 1024  # module, function, registers, spills, most threads

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_device_interface(self):
        return torch.cuda


MOCK = Driver()  # one for all tests: Triton keeps a kernel, and its launcher, for later calls


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that are launched."""
    MOCK.launched.clear()
    monkeypatch.setattr(driver, "_active", MOCK)
    with ahead.on_gpu(monkeypatch, 90):
        yield MOCK.launched


def test_every_op_is_counted():
    assert LAUNCHES.keys() == KERNELS.keys()


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_call_launches_its_kernels(name, launched):
    KERNELS[name](*next(iter(SAMPLES[name]("cpu", torch.float32))))
    assert len(launched) == LAUNCHES[name], launched

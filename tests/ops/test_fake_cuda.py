"""Public functions on fake CUDA tensors: what is called, on which device, in which shapes.

Most need a torch built for CUDA, though no GPU; gradients need one, for torch's engine asks for it.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cmrfast import losses, ops

EYE = torch.eye(4, dtype=torch.float64)


def make(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype, device="cuda")


def start():
    return make(5, 3, dtype=torch.int64)


#: Public call -> (of its first tensor, which has a gradient; the shapes and dtype of that tensor).
CALLS = {
    "affine_sample": (lambda x: ops.affine_sample(x, make(2, 2, 3)), (2, 4, 16, 16)),
    "warp_pair": (
        lambda x: ops.warp_pair(x, make(2, 16, 16, dtype=torch.uint8), make(2, 2, 3))[0],
        (2, 4, 16, 16),
    ),
    "resample": (lambda x: ops.resample(x, EYE.cuda(), EYE.cuda(), (8, 8, 8)), (1, 8, 8, 8)),
    "extract_patches": (
        lambda x: ops.extract_patches(x, start(), (4, 4, 4), shift=1.0, scale=2.0),
        (1, 8, 8, 8),
    ),
    "sample_patches": (
        lambda x: ops.sample_patches(x, make(5, 3), make(5, 3, 3), (4, 4, 4), scale=2.0),
        (1, 8, 8, 8),
    ),
    "merge_patches": (lambda x: ops.merge_patches(x, start(), (8, 8, 8)), (5, 1, 4, 4, 4)),
    "dice_ce_loss": (
        lambda x: losses.dice_ce_loss(x, make(2, 16, 16, dtype=torch.int64)),
        (2, 4, 16, 16),
    ),
    "batch_dice_loss": (
        lambda x: losses.batch_dice_loss(x, make(2, 4, 16, 16, dtype=torch.uint8)),
        (2, 4, 16, 16),
    ),
    "nt_xent": (lambda x: ops.nt_xent(x, make(8, 16), symmetric=True), (8, 16)),
}


#: Calls that make no tensor of their own on the device, which a torch without CUDA cannot fake.
ANY_TORCH = {"merge_patches", "dice_ce_loss", "batch_dice_loss", "nt_xent"}
needs_cuda = pytest.mark.skipif(torch.version.cuda is None, reason="torch was built without CUDA")


@pytest.mark.parametrize(
    "name", [name if name in ANY_TORCH else pytest.param(name, marks=needs_cuda) for name in CALLS]
)
def test_forward(name):
    call, shape = CALLS[name]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        assert call(make(*shape)).device.type == "cuda"


@pytest.mark.skipif(torch.cuda.device_count() == 0, reason="there is no GPU")
@pytest.mark.parametrize("name", CALLS)
def test_gradients(name):
    call, shape = CALLS[name]
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = make(*shape).requires_grad_()
        call(x).sum().backward()
        assert (x.grad.device, x.grad.shape, x.grad.dtype) == (x.device, x.shape, x.dtype)

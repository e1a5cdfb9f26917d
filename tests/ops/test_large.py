"""Calls on more than 2^31 elements: indices that no longer fit 32 bits.

On the CPU no test takes more than 9 GiB: what is only read is zeros that were never written, which
take no memory until then.
"""

import numpy as np
import pytest
import torch

import cmrfast.models.kernels  # noqa: F401  (declares max_pool, same_conv2d, thin_conv3d)
from cmrfast import ops
from cmrfast.ops._op import OPS
from tests.support.devices import every_device

pytestmark = pytest.mark.slow
MORE = 2**31 + 1024  # float32 holds this and its half


def zeros(*shape, device, dtype=torch.float32):
    """Zeros; on the CPU, of pages that the system makes when they are first written."""
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    bits = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[dtype.itemsize]
    return torch.from_numpy(np.zeros(shape, bits)).view(dtype)


@every_device
def test_extract_patches_into_more_than_2_to_31_elements(device):
    volume = torch.arange(200, dtype=torch.uint8, device=device).expand(1, 3, 200).contiguous()
    width, rows = 46400, 46400  # 2.15e9 elements
    start = torch.tensor([[3 - rows, 200 - width]], device=device)
    patch = ops.extract_patches(volume, start, (rows, width), dtype=torch.uint8)
    assert patch.numel() > 2**31
    assert torch.equal(patch[0, 0, -3:, -200:], volume[0])
    assert patch[0, 0, -4].max() == 0


@every_device
def test_extract_patches_out_of_more_than_2_to_31_voxels(device):
    volume = zeros(1, 1, MORE, device=device, dtype=torch.uint8)
    volume[0, 0, -2:] = torch.tensor([3, 4])
    start = torch.tensor([[0, MORE - 3]], device=device)
    patch = ops.extract_patches(volume, start, (1, 4), fill=9)
    assert patch.flatten().tolist() == [0, 3, 4, 9]


@every_device
def test_dice_ce_sums_of_more_than_2_to_31_logits(device):
    logits = zeros(1, 1, MORE, device=device)
    target = zeros(1, 1, MORE, device=device, dtype=torch.uint8)
    target[0, 0, -1] = 1
    sums = ops.dice_ce_sums(logits, target, activation="sigmoid")
    assert sums[0, 0, :3].tolist() == [0.5, MORE / 2, 1]
    gradient = OPS["dice_ce_sums_backward"](
        torch.ones(1, 1, 4, device=device), logits, target, 1, -100, 1e-4
    )
    assert gradient[0, 0, -1].item() == pytest.approx(0.25 * 2 - 0.5)
    if device == "cpu":
        assert OPS["label_faults"](target, 1, -100).item() == 1


@every_device
def test_gradient_of_extract_patches_into_more_than_2_to_31_voxels(device):
    table = torch.tensor([[0, 1, MORE]], device=device)
    start = torch.tensor([[0, MORE - 3], [0, MORE - 2]], device=device)
    scale = torch.ones(1, 1, device=device, dtype=torch.float64)
    index = torch.zeros(2, device=device, dtype=torch.int64)
    flips = torch.empty(0, 2, dtype=torch.bool, device=device)
    grad = torch.ones(2, 1, 1, 4, device=device)
    out = OPS["extract_patches_backward"](grad, table, (), start, index, flips, scale, MORE)
    assert out[-4:].tolist() == [0, 1, 2, 2]
    assert out.sum().item() == 5


@every_device
def test_window_counts_behind_more_than_2_to_31_voxels(device):
    mask = zeros(1025, 128, 128, 128, device=device, dtype=torch.bool)
    mask[-1, -1, -1, -2:] = True
    start = torch.tensor([[0, 0, 0], [127, 127, 127]], device=device)
    last = torch.full((2,), 1024, device=device)
    assert ops.window_counts(mask, start, (128, 128, 128), volume_index=last).tolist() == [2, 1]


@every_device
def test_merge_patches_into_more_than_2_to_31_voxels(device):
    start = torch.tensor([[1299 - 3, 1300 - 4, 1300 - 4]], device=device)
    patch = torch.ones(1, 1, 4, 4, 4, device=device)
    merged = ops.merge_patches(patch, start, (1300, 1300, 1300), fill=0.0)
    assert merged[0, 1295].max() == 0
    assert merged[0, 1296:].sum(dtype=torch.float64).item() == 64
    assert merged[0, 1298, 1299, 1299].item() == 1


@every_device
def test_affine_sample_of_more_than_2_to_31_voxels(device):
    images = zeros(1, 1, 46400, 46400, device=device)
    images[..., -1, -2:] = torch.tensor([3.0, 5.0])
    matrix = torch.tensor([[[1.0, 0, 46399], [0.5, 1.0, 46398.5]]], dtype=torch.float64)
    args = images, matrix.to(device), (1, 2), 0, 0, 1, 0.0  # linear, with a border
    assert OPS["affine_sample"](*args).flatten().tolist() == [4, 5]


@every_device
def test_gradients_of_affine_sample_of_more_than_2_to_31_voxels(device):
    images = zeros(1, 1, 46400, 46400, device=device)
    images[..., -1, -2:] = torch.tensor([3.0, 5.0])
    matrix = torch.tensor([[[1.0, 0, 46399], [0.5, 1.0, 46398.5]]], dtype=torch.float64)
    grad = torch.ones(1, 1, 1, 1, device=device)
    args = grad, images, matrix.to(device), 0, 0, 1, True, True
    grad_images, grad_matrix = OPS["affine_sample_backward"](*args)
    assert grad_images[0, 0, -1, -3:].tolist() == [0, 0.5, 0.5]
    assert grad_matrix[0, :, -1].tolist() == [0, 2]


@every_device
def test_resample_between_more_than_2_to_31_voxels(device):
    volume = torch.arange(6, dtype=torch.uint8, device=device).view(1, 1, 2, 3)
    eye, far = torch.eye(4).double(), torch.eye(4).double()
    far[1:3, 3] = torch.tensor([2 - 46400, 3 - 46400])
    large = ops.resample(volume, eye, far, (1, 46400, 46400), mode="nearest", fill=7)
    assert large[0, 0, -2:, -3:].tolist() == volume[0, 0].tolist()
    assert large[0, 0, -3:, -4].tolist() == [7, 7, 7]
    back = ops.resample(large, far, eye, (1, 2, 3), mode="nearest")
    assert torch.equal(back, volume)


@every_device
def test_contract_axis_of_more_than_2_to_31_numbers(device):
    values = zeros(46400, 2, 23300, device=device)
    values[-1, :, -1] = 1
    weights = torch.ones(1, 2, dtype=torch.float64, device=device)
    summed = OPS["contract_axis"](values, weights)
    assert (summed[-1, 0, -1].item(), summed.shape) == (2, (46400, 1, 23300))


@every_device
def test_nt_xent_of_more_than_2_to_31_pairs(device):
    rows = torch.eye(64, device=device).repeat(760, 1)  # 48,640: 2.4e9 cosines, 0 or 1
    loss = ops.nt_xent(rows, rows, temperature=1.0)
    e = torch.tensor(1.0).exp()
    torch.testing.assert_close(loss.cpu(), (760 * e + 63 * 760).log() - 1, rtol=1e-5, atol=1e-5)


def test_same_conv2d_of_more_than_2_to_31_pixels():
    x = zeros(1, 16, 11_600, 11_600, device="cpu")
    x[0, -1, -1, -1] = 3
    weight = torch.ones(1, 16, 3, 3)
    out = OPS["same_conv2d"](x, weight, torch.zeros(1), 1, False)
    assert out[0, 0, -3:, -3:].tolist() == [[0, 0, 0], [0, 3, 3], [0, 3, 3]]
    grad = OPS["same_conv2d_backward"](out, x, 3, 1)
    assert grad[0, -1].tolist() == [[0, 0, 0], [0, 9, 9], [0, 9, 9]]
    assert grad[0, :-1].abs().max() == 0


def test_max_pool_of_more_than_2_to_31_voxels():
    x = zeros(1, 2, 1024, 1024, 1026, device="cpu")
    x[0, -1, -1, -1, -1] = 3
    out = OPS["max_pool"](x)
    assert out[0, -1, -1, -1, -2:].tolist() == [0, 3]
    grad = OPS["max_pool_backward"](out, x)
    assert grad[0, -1, -1, -1, -2:].tolist() == [0, 3]
    assert grad[0, 0].abs().max() == 0


def test_thin_conv3d_of_more_than_2_to_31_voxels():
    x = zeros(1, 2, 1024, 1024, 1025, device="cpu")
    x[0, -1, -1, -1, -1] = 3
    out = OPS["thin_conv3d"](x, torch.ones(1, 2, 3, 3, 3), torch.zeros(1), 1.0)
    assert out[0, 0, -3:, -1, -1].tolist() == [0, 3, 3]
    grad, bias = OPS["thin_conv3d_backward"](out, x)
    assert grad[0, -1, :, 1, 1].tolist() == [0, 9, 9]
    assert bias.item() == 3 * 8

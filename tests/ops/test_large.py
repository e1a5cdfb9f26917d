"""Calls on more than 2^31 elements: indices that no longer fit 32 bits."""

import pytest
import torch

from cmrfast import ops
from cmrfast.ops._op import OPS
from tests.support.devices import every_device

pytestmark = pytest.mark.slow
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="takes too long without a GPU")
MORE = 2**31 + 1024  # float32 holds this and its half


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
def test_dice_ce_sums_of_more_than_2_to_31_logits(device):
    logits = torch.zeros(1, 1, MORE, device=device)
    target = torch.ones(1, 1, 1, dtype=torch.uint8, device=device).expand(1, 1, MORE).contiguous()
    sums = ops.dice_ce_sums(logits, target, activation="sigmoid")
    assert sums[0, 0, :3].tolist() == [MORE / 2, MORE / 2, MORE]
    gradient = OPS["dice_ce_sums_backward"](
        torch.ones(1, 1, 4, device=device), logits, target, 1, -100, 1e-4
    )
    assert gradient[0, 0, -1].item() == pytest.approx(0.25 * 2 - 0.5)
    assert OPS["label_faults"](target, 1, -100).item() == MORE


@on_gpu
def test_gradient_of_extract_patches_into_more_than_2_to_31_voxels():
    table = torch.tensor([[0, 1, MORE]], device="cuda")
    start = torch.tensor([[0, MORE - 3], [0, MORE - 2]], device="cuda")
    scale, zero = torch.ones(1, 1, device="cuda").double(), torch.zeros(2, device="cuda").long()
    flips = torch.empty(0, 2, dtype=torch.bool, device="cuda")
    grad = torch.ones(2, 1, 1, 4, device="cuda")
    out = OPS["extract_patches_backward"](grad, table, start, zero, flips, scale, MORE)
    assert out[-4:].tolist() == [0, 1, 2, 2]
    assert out.sum().item() == 5


@on_gpu
def test_window_counts_in_more_than_2_to_31_voxels():
    mask = torch.zeros(1300, 1300, 1300, dtype=torch.bool, device="cuda")
    mask[-1, -1, -2:] = True
    start = torch.tensor([[0, 0, 0], [1299, 1299, 1299]], device="cuda")
    assert ops.window_counts(mask, start, (1300, 1300, 1300)).tolist() == [2, 1]


@on_gpu
def test_merge_patches_into_more_than_2_to_31_voxels():
    start = torch.tensor([[1299 - 3, 1300 - 4, 1300 - 4]], device="cuda")
    patch = torch.ones(1, 1, 4, 4, 4, device="cuda")
    merged = ops.merge_patches(patch, start, (1300, 1300, 1300), fill=0.0)
    assert merged.sum(dtype=torch.float64).item() == 64
    assert merged[0, 1298, 1299, 1299].item() == 1


@on_gpu
def test_affine_sample_and_its_gradients_of_more_than_2_to_31_voxels():
    images = torch.zeros(1, 1, 46400, 46400, dtype=torch.bfloat16, device="cuda")
    images[..., -1, -1] = 3
    theta = torch.eye(2, 3, device="cuda")[None]
    assert ops.affine_sample(images, theta)[0, 0, -1, -1].item() == 3
    matrix = torch.eye(2, 3, dtype=torch.float64, device="cuda")[None]
    to_images, to_matrix = OPS["affine_sample_backward"](images, images, matrix, 0, 0, True, True)
    assert to_images[0, 0, -1, -1].item() == 3
    assert to_matrix.isfinite().all()


@on_gpu
def test_contract_axis_of_more_than_2_to_31_numbers():
    values = torch.ones(46400, 2, 23300, device="cuda")
    summed = OPS["contract_axis"](values, torch.ones(1, 2, dtype=torch.float64, device="cuda"))
    assert (summed[-1, 0, -1].item(), summed.shape) == (2, (46400, 1, 23300))


@on_gpu
def test_nt_xent_of_more_than_2_to_31_pairs():
    rows = torch.eye(64, device="cuda").repeat(760, 1)  # 48,640: 2.4e9 cosines, 0 or 1
    loss = ops.nt_xent(rows, rows, temperature=1.0)
    e = torch.tensor(1.0).exp()
    torch.testing.assert_close(loss.cpu(), (760 * e + 63 * 760).log() - 1, rtol=1e-5, atol=1e-5)

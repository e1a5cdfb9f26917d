"""Calls on more than 2^31 elements: indices that no longer fit 32 bits."""

import pytest
import torch

from cmrfast import ops

pytestmark = pytest.mark.slow


def test_extract_patches_into_more_than_2_to_31_elements():
    volume = torch.arange(200, dtype=torch.uint8).expand(1, 3, 200).contiguous()
    width, rows = 46400, 46400  # 2.15e9 elements
    start = torch.tensor([[3 - rows, 200 - width]])
    patch = ops.extract_patches(volume, start, (rows, width), dtype=torch.uint8)
    assert patch.numel() > 2**31
    assert torch.equal(patch[0, 0, -3:, -200:], volume[0])
    assert patch[0, 0, -4].max() == 0


def test_dice_ce_sums_of_more_than_2_to_31_logits():
    n = 2**31 + 64
    logits = torch.zeros(1, 1, n)
    target = torch.ones(1, 1, 1, dtype=torch.uint8).expand(1, 1, n).contiguous()
    sums = ops.dice_ce_sums(logits, target, activation="sigmoid")
    assert sums[0, 0, :3].tolist() == [n / 2, n / 2, n]

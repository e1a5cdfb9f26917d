"""What a reference cannot show of window_counts."""

import torch

from cmrfast import ops


def test_window_counts_are_sums():
    mask = torch.rand(3, 9, 8, 7) < 0.3
    start, index = torch.randint(-4, 9, (40, 3)), torch.randint(0, 3, (40,))
    counts = ops.window_counts(mask, start, (3, 4, 5), volume_index=index)
    cut = ops.extract_patches(mask[:, None], start, (3, 4, 5), volume_index=index)
    assert torch.equal(counts, cut.sum((1, 2, 3, 4)).long())


def test_window_counts_of_a_list_and_of_huge_windows():
    masks = [torch.ones(4, 5), torch.ones(3, 3)]
    start = torch.tensor([[-(2**62), 0], [-9, -9], [2**62, 2**62]])
    counts = ops.window_counts(masks, start, (50, 50), volume_index=torch.tensor([0, 1, 1]))
    assert counts.tolist() == [0, 9, 0]

"""The pairs of patches cut out of T1 and LGE."""

import torch


def test_patches_are_positive_with_a_quarter_of_the_lesion(task, cohort):
    for case in cohort:
        pairs = task._pairs(case)
        patches = task._patches([pairs])
        for number in range(len(patches)):
            i, j = patches.start_vox[number].tolist()
            lesion = pairs["lesion"][patches.volume[number]]
            held = lesion[max(i, 0) : i + 64, max(j, 0) : j + 64].sum()
            assert patches.labels[number] == int(held > 0 and held >= lesion.sum() / 4)
            center = pairs["myocardium"][patches.volume[number], i + 32, j + 32]
            assert center == 1


def test_mirrored_copies_share_their_flip(task, cohort):
    patches = task._patches([task._pairs(case) for case in cohort[:2]])
    copies = patches.with_mirrored(0.5, seed=0)
    plain = patches.cut(torch.arange(len(patches)))
    flipped = copies.flips.any(1).nonzero().flatten()
    assert len(flipped) == len(copies) - len(patches)
    assert abs(len(flipped) / len(patches) - 0.5) < 0.1
    counts = [
        (copies.flips[flipped] == torch.tensor(f)).all(1).sum() for f in ((1, 0), (0, 1), (1, 1))
    ]
    assert sum(counts) == len(flipped)
    assert min(counts) > 0.2 * len(flipped)
    found = copies.cut(flipped)
    for row, copy in enumerate(flipped.tolist()):
        of = int((~copies.flips[:copy].any(1)).sum()) - 1  # a copy stands behind what it is of
        axes = [1 + axis for axis in range(2) if copies.flips[copy, axis]]
        for name in task.inputs:
            assert torch.equal(found[name][row], plain[name][of].flip(axes))
        assert found["labels"][row] == plain["labels"][of]
    assert len(patches.with_mirrored(0.0, seed=0)) == len(patches)
    assert len(patches.with_mirrored(1.0, seed=0)) == 2 * len(patches)

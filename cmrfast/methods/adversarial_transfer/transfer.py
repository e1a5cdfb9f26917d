"""Weak transfer: masks of one stack on the slices of another."""

import torch
from torch import Tensor

from cmrfast.data.slices import slice_pairs_by_index, world_from_slice
from cmrfast.data.volume import Volume
from cmrfast.models.adversarial_transfer import SliceMap
from cmrfast.ops import resample


def transfer_slices(source: int, target: int, *, form: SliceMap = "paper") -> list[int]:
    """Which slice of a target stack each slice of a source stack gives its mask to.

    Weak transfer of ``adversarial_transfer``: both stacks span the heart from base to apex.

    Args:
        source: slices of the annotated stack.
        target: slices of the stack without annotation.
        form: ``paper``: floor(i · target / source); ``code``: as the authors' program,
            round(target / source · (i + 1)) - 1 (ties to even), at least 0.

    Returns:
        One slice of the target per slice of the source, from 0.

    Example:
        >>> transfer_slices(9, 15)
        [0, 1, 3, 5, 6, 8, 10, 11, 13]
    """
    if source < 1 or target < 1:
        raise ValueError(
            f"transfer_slices: both stacks must have slices; got {source} and {target}"
        )
    if form not in ("paper", "code"):
        raise ValueError(f"transfer_slices: form must be one of paper, code; got {form!r}")
    if form == "paper":
        return [pair.target for pair in slice_pairs_by_index(source, target)]
    return [max(0, round(target / source * (i + 1)) - 1) for i in range(source)]


def borrowed_masks(
    lender: Volume, borrower: Volume, slice_map: SliceMap = "paper"
) -> tuple[list[int], Tensor]:
    """Masks of one stack on slices of another: by order from base to apex, in plane by position.

    Args:
        lender: labels of one stack.
        borrower: the other stack.
        slice_map: as in ``transfer_slices``.

    Returns:
        For each slice of the lender, from the borrower's first end on, the borrower's slice; and
        the masks (1, I, J, S) on these.
    """
    count = lender.shape[2]
    slices = transfer_slices(count, borrower.shape[2], form=slice_map)
    along, other = lender.world_from_vox[:3, 2], borrower.world_from_vox[:3, 2]
    # One stack may be stored from base to apex, the other from apex to base.
    sources = range(count) if along @ other > 0 else reversed(range(count))
    masks = [
        resample(
            lender.data[..., i],
            world_from_slice(lender, i),
            world_from_slice(borrower, j),
            borrower.shape[:2],
            mode="nearest",
        )
        for i, j in zip(sources, slices, strict=True)
    ]
    return slices, torch.stack(masks, -1)

"""Label values and slices of one sequence in terms of another."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor


def remap_labels(
    labels: Tensor, mapping: Mapping[int, int], *, dtype: torch.dtype = torch.uint8
) -> Tensor:
    """Label values exchanged; 0 stays 0.

    Args:
        labels: real, of whole numbers (masks stored as floats too); any shape.
        mapping: new value of each old one.
        dtype: of the result; all new values must fit.

    Returns:
        Same shape. A value that the mapping does not name raises.

    Example:
        >>> remap_labels(torch.tensor([0, 500, 200, 600]), {500: 1, 200: 2, 600: 3}).tolist()
        [0, 1, 2, 3]
    """
    limits = torch.iinfo(dtype)
    wrong = sorted(v for v in mapping.values() if not limits.min <= v <= limits.max)
    if wrong:
        raise ValueError(f"remap_labels: new values must fit {dtype}; got {wrong}")
    named = {0: 0, **mapping}
    renamed = torch.zeros(labels.shape, dtype=dtype, device=labels.device)
    known = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
    for old, new in named.items():
        here = labels == old
        renamed[here] = new
        known |= here
    if not known.all():
        strange = labels[~known].unique().tolist()
        raise ValueError(
            f"remap_labels: mapping names {sorted(named)}; got also "
            f"{', '.join(map(str, strange[:5]))}{' …' if len(strange) > 5 else ''}"
        )
    return renamed


def transfer_slices(
    source: int, target: int, *, form: Literal["paper", "code"] = "paper"
) -> list[int]:
    """Which slice of a target stack each slice of a source stack lends its mask to.

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
        return [i * target // source for i in range(source)]
    return [max(0, round(target / source * (i + 1)) - 1) for i in range(source)]

"""Phantoms: synthetic patients in the layouts of the public data sets, with every label.

They replace data that cannot be redistributed, in tests and demonstrations. Scores measured on
them show whether the code works, not how well a network would do on patients.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from cmrfast.data.phantom.brain_sets import write_msseg2, write_open_ms
from cmrfast.data.phantom.heart_sets import (
    write_emidec,
    write_mscmrseg,
    write_myops,
    write_t1_lge,
)
from cmrfast.data.phantom.marker import mark_synthetic
from cmrfast.errors import FileError

_Write = Callable[[Path, int, int, np.random.Generator, float], None]
_WRITERS: dict[str, _Write] = {
    "t1_lge": write_t1_lge,
    "emidec": write_emidec,
    "myops": write_myops,
    "mscmrseg": write_mscmrseg,
    "msseg2": write_msseg2,
    "open_ms": write_open_ms,
}


def write_phantoms(
    layout: str,
    out: str | os.PathLike[str],
    *,
    cases: int = 12,
    seed: int = 0,
    shrink: float = 1.0,
    lesion_t1_ms: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a synthetic data set in a public layout.

    Args:
        layout: t1_lge, emidec, myops, mscmrseg, msseg2 or open_ms.
        out: a new or empty folder, which becomes the root of the data set.
        cases: number of patients. A patient depends only on the seed and on its own number.
        seed: the same seed gives the same bytes.
        shrink: factor by which voxels are enlarged (hearts: in plane), for tests and
            demonstrations.
        lesion_t1_ms: by how much T1 of every lesion of t1_lge exceeds that of the muscle around it;
            default drawn for each patient. Nothing else depends on it.
        progress: called with (patients written, total number of patients).

    Returns:
        The root, for ``open_dataset``.

    Example:
        >>> import tempfile
        >>> from cmrfast.data.datasets import open_dataset
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_phantoms("t1_lge", folder, cases=2, shrink=3)
        ...     [case.name for case in open_dataset("t1_lge", root)]
        ['subject01', 'subject02']
    """
    if layout not in _WRITERS:
        raise ValueError(
            f"write_phantoms: layout must be one of {', '.join(_WRITERS)}; got {layout!r}"
        )
    if cases < 1:
        raise ValueError(f"write_phantoms: cases must be at least 1; got {cases}")
    if seed < 0:
        raise ValueError(f"write_phantoms: seed must not be negative; got {seed}")
    if not 1 <= shrink <= 4:
        raise ValueError(f"write_phantoms: shrink must be between 1 and 4; got {shrink}")
    write = _WRITERS[layout]
    if lesion_t1_ms is not None:
        if layout != "t1_lge":
            raise ValueError(
                f"write_phantoms: lesion_t1_ms is an option of t1_lge, not of {layout}"
            )
        write = partial(write_t1_lge, lesion_t1_ms=lesion_t1_ms)
    root = Path(out)
    try:
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise FileError(f"write_phantoms: {root} must be a new or empty folder; it holds files")
        mark_synthetic(root)
        for number in range(1, cases + 1):
            rng = np.random.default_rng([seed, number])
            write(root, number, cases, rng, float(shrink))
            if progress is not None:
                progress(number, cases)
    except OSError as error:
        raise FileError(f"write_phantoms: {root}: {error.strerror or error}") from error
    return root


__all__ = ["write_phantoms"]

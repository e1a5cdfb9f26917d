"""Public data sets of the five methods, recognised by their published layouts, and nnU-Net's."""

import os
from pathlib import Path

from cmrfast.data.datasets import acdc, emidec, mscmrseg, msseg2, myops, nnunet, open_ms, t1_lge
from cmrfast.data.datasets.case import Case, Dataset, Labelling
from cmrfast.data.datasets.layout import DataLayout
from cmrfast.data.datasets.nnunet import read_nnunet, write_nnunet
from cmrfast.data.datasets.part import Part
from cmrfast.data.datasets.split import Split, split_by_patient

#: Every layout by its name.
LAYOUTS: dict[str, DataLayout] = {
    module.LAYOUT.name: module.LAYOUT
    for module in (mscmrseg, myops, emidec, acdc, msseg2, open_ms, t1_lge, nnunet)
}


def open_dataset(name: str, root: str | os.PathLike[str]) -> Dataset:
    """Find the cases of a data set, without reading any image.

    Args:
        name: mscmrseg, myops, emidec, acdc, msseg2, open_ms, t1_lge or nnunet; the module of that
            name under ``cmrfast.data.datasets`` shows the layout.
        root: the published root, or any folder below it, down to that of one patient.

    Returns:
        The cases, ordered by number; ``Dataset.faults`` names what is missing.
    """
    if name not in LAYOUTS:
        raise ValueError(f"open_dataset: name must be one of {', '.join(LAYOUTS)}; got {name!r}")
    return LAYOUTS[name].open(Path(root))


__all__ = [
    "LAYOUTS",
    "Case",
    "Dataset",
    "Labelling",
    "Part",
    "Split",
    "open_dataset",
    "read_nnunet",
    "split_by_patient",
    "write_nnunet",
]

"""Data sets: the public ones by their published layouts, and those of one's own."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cmrfast.data.datasets import (
    acdc,
    bids,
    emidec,
    mscmrseg,
    msseg2,
    myops,
    nnunet,
    open_ms,
    t1_lge,
    table,
)
from cmrfast.data.datasets.case import Case, Dataset, Labelling
from cmrfast.data.datasets.folder import guess_cases
from cmrfast.data.datasets.layout import DataLayout, MarkedLayout
from cmrfast.data.datasets.match import match
from cmrfast.data.datasets.needs import Files, MaskNeed, Needs, Structure
from cmrfast.data.datasets.nnunet import read_channels, read_nnunet, write_nnunet
from cmrfast.data.datasets.part import Part
from cmrfast.data.datasets.split import Split, split_by_patient
from cmrfast.data.datasets.table import read_table, write_table
from cmrfast.errors import FileError

#: Layouts of one's own data by name; every method reads them.
OWN_LAYOUTS: dict[str, MarkedLayout] = {
    module.LAYOUT.name: module.LAYOUT for module in (table, nnunet, bids)
}
#: Every layout by its name.
LAYOUTS: dict[str, DataLayout] = {
    **{
        module.LAYOUT.name: module.LAYOUT
        for module in (mscmrseg, myops, emidec, acdc, msseg2, open_ms, t1_lge)
    },
    **OWN_LAYOUTS,
}


def open_dataset(name: str, root: str | os.PathLike[str]) -> Dataset:
    """Find the cases of a data set, without reading any image.

    Args:
        name: mscmrseg, myops, emidec, acdc, msseg2, open_ms, t1_lge, table, nnunet or bids; the
            module of that name under ``cmrfast.data.datasets`` shows the layout.
        root: the published root, or any folder below it, down to that of one patient; for your own
            data the folder that describes it.

    Returns:
        The cases, ordered by number; ``Dataset.faults`` names what is missing.
    """
    if name not in LAYOUTS:
        raise ValueError(f"open_dataset: name must be one of {', '.join(LAYOUTS)}; got {name!r}")
    return LAYOUTS[name].open(Path(root))


def recognise(root: str | os.PathLike[str], preferred: Sequence[str] = ()) -> Dataset:
    """Open a folder in the layout that it has.

    A layout of one's own data is known by the file that describes it. A public one is known by its
    file names; some of these occur in several.

    Args:
        root: as for ``open_dataset``.
        preferred: layouts to try before the other public ones.

    Raises:
        FileError: it has no layout; says what the preferred ones should hold.
    """
    path = Path(root)
    for name, layout in OWN_LAYOUTS.items():
        if layout.claims(path):
            return open_dataset(name, root)
    refused = []
    for name in dict.fromkeys([*preferred, *LAYOUTS]):
        if name in OWN_LAYOUTS:
            continue
        try:
            return open_dataset(name, root)
        except FileError as error:
            if name in preferred:
                refused.append(str(error))
    _require_folder(path)
    if not refused:
        raise FileError(
            f"recognise: {root} has no known layout; cmrfast data describe {root} --write "
            f"{table.FILE} writes a table to start from"
        )
    raise FileError("; ".join(dict.fromkeys(refused)))


def _require_folder(path: Path) -> None:
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"recognise: {path}: {reason}") from error
    if not is_folder:
        raise FileError(f"recognise: {path} is a file, not the folder of a data set")


__all__ = [
    "LAYOUTS",
    "OWN_LAYOUTS",
    "Case",
    "Dataset",
    "Files",
    "Labelling",
    "MaskNeed",
    "Needs",
    "Part",
    "Split",
    "Structure",
    "guess_cases",
    "match",
    "open_dataset",
    "read_channels",
    "read_nnunet",
    "read_table",
    "recognise",
    "split_by_patient",
    "write_nnunet",
    "write_table",
]

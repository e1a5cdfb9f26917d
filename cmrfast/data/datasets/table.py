"""A table of cases: one row a case, one column a sequence or a label, files anywhere.

::

    cases.csv
      case,LGE,LGE_label,split
      p1,p1/lge.nii.gz,p1/mask.nii.gz,train
      p2,p2/lge.nii.gz,p2/mask.nii.gz,test

Paths start at the table's folder. A column is a label if its name is that of a structure, such as
``scar``, or ends in ``label`` or ``mask``; ``LGE_scar`` and ``LGE_label`` lie on the grid of
``LGE``. A mask of one structure holds 0 and 1. What the values of a ``label`` mean, the user says.
``split`` may hold train, validate and test, or nothing for cases that are in no part. Columns
without any NIfTI file are read as ``info``. Comma, semicolon or tab separates the cells.
"""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmrfast.atomic import atomic_write
from cmrfast.data.datasets.case import Case, Dataset, Labelling, binary
from cmrfast.data.datasets.layout import natural_key, read_table_text
from cmrfast.data.datasets.names import plain, sequence_name, split_label
from cmrfast.errors import FileError

FILE = "cases.csv"
_CASE, _SPLIT = "case", "split"
_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validate", "validation", "val"), "validate"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SEPARATORS = ",;\t"


@dataclass(frozen=True)
class _Columns:
    """What the columns of a table are."""

    images: tuple[str, ...]
    labels: dict[str, Labelling]


def read_table(root: str | os.PathLike[str]) -> Dataset:
    """Find the cases of a table; ``open_dataset("table", root)`` is the same. Reads no image.

    Args:
        root: a folder that holds ``cases.csv``, or the file itself, of any name.

    Raises:
        FileError: the table cannot be read, or a cell of it is wrong.
    """
    path = _table_at(Path(root))
    try:
        cases = _read_cases(read_table_text(path), path.absolute().parent)
    except OSError as error:
        raise FileError(f"read_table: {path}: {error.strerror or error}") from error
    except (ValueError, csv.Error) as error:
        raise FileError(f"read_table: {path}: {error}") from error
    return Dataset(LAYOUT.name, Path(root), tuple(sorted(cases, key=lambda c: natural_key(c.name))))


def write_table(cases: Sequence[Case], path: str | os.PathLike[str]) -> None:
    """Write the files of cases as a table, to be edited; files below its folder by relative path.

    A label that is not named after a structure gets the name of its sequence: ``LGE_label``.
    """
    target = Path(path)
    folder = target.absolute().parent
    images = list(dict.fromkeys(name for case in cases for name in case.images))
    labels = list(dict.fromkeys(name for case in cases for name in case.labels))
    columns = {name: name if split_label(name) else f"{name}_label" for name in labels}
    splits = [case.info.get(_SPLIT, "") for case in cases]
    lines = [[_CASE, *images, *columns.values(), _SPLIT]]
    for case, split in zip(cases, splits, strict=True):
        files = [case.images.get(name) for name in images]
        files += [case.labels.get(name) for name in labels]
        lines.append([case.name, *(_cell(file, folder) for file in files), split])
    try:
        with atomic_write(target) as temporary:
            temporary.write_bytes(b"".join(map(_encode_row, lines)))
    except OSError as error:
        raise FileError(f"write_table: {target}: {error.strerror or error}") from error


def _encode_row(cells: Sequence[str]) -> bytes:
    """A row in UTF-8; its first cell names the case."""
    row = io.StringIO()
    csv.writer(row, lineterminator="\n").writerow(cells)
    try:
        return row.getvalue().encode()
    except UnicodeEncodeError as error:
        raise FileError(
            f"write_table: the files of {cells[0]!r} must have names in UTF-8; "
            f"got {error.object.rstrip()!r}"
        ) from error


def _cell(file: Path | None, folder: Path) -> str:
    if file is None:
        return ""
    file = file.absolute()
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)


def _table_at(root: Path) -> Path:
    """The table of a folder, or the file itself."""
    if root.suffix == ".csv":
        return root
    if not root.is_dir():
        raise FileError(f"read_table: {root} is not a folder")
    if not os.path.exists(root / FILE):  # Path.exists raises in a folder that cannot be searched
        raise FileError(
            f"read_table: {root} holds no case of table; it should hold files such as {FILE}"
        )
    return root / FILE


def _read_cases(text: str, folder: Path) -> list[Case]:
    heads, *rows = _read_rows(text)
    files = [any(_is_image(row[n]) for row in rows) for n in range(len(heads))]
    columns = _describe_columns([head for head, has in zip(heads, files, strict=True) if has])
    info = [h for h, has in zip(heads, files, strict=True) if not has and h not in (_CASE, _SPLIT)]
    cases: dict[str, Case] = {}
    for row in rows:
        cells = dict(zip(heads, row, strict=True))
        name = cells[_CASE]
        if not name or name in cases:
            raise ValueError(f"each row must name a case that no other row names; got {name!r}")
        cases[name] = _make_case(name, cells, columns, info, folder)
    return list(cases.values())


def _read_rows(text: str) -> list[list[str]]:
    """Heads and rows of one length, without empty rows."""
    first = text.partition("\n")[0]
    separator = max(_SEPARATORS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    numbered = [
        (reader.line_num, cells) for line in reader if any(cells := [cell.strip() for cell in line])
    ]
    rows = [cells for _, cells in numbered]
    heads = rows[0] if rows else []
    heads = [plain(head) if plain(head) in (_CASE, _SPLIT) else head for head in heads]
    if _CASE not in heads or len(set(heads)) < len(heads) or "" in heads:
        raise ValueError(
            f"the first row must name each column once, one of them {_CASE}; "
            f"got {', '.join(heads) or 'nothing'}"
        )
    for number, row in numbered[1:]:
        if len(row) != len(heads):
            raise ValueError(f"line {number} must have {len(heads)} cells; got {len(row)}")
    if len(rows) == 1:
        raise ValueError("it lists no case")
    return [heads, *rows[1:]]


def _is_image(cell: str) -> bool:
    return cell.endswith((".nii", ".nii.gz"))


def _describe_columns(heads: Sequence[str]) -> _Columns:
    """Which columns of files are images, and what those of labels hold."""
    labels = {head: parts for head in heads if (parts := split_label(head))}
    images = tuple(head for head in heads if head not in labels)
    by_name = {sequence_name(image): image for image in images}
    labelling = {}
    for head, (image, structure) in labels.items():
        on = by_name.get(sequence_name(image), "") if image else ""
        if not on and len(images) == 1:
            on = images[0]
        labelling[head] = labelling_of(structure, on=on)
    return _Columns(images, labelling)


def labelling_of(structure: str, *, on: str) -> Labelling:
    """The labelling of a mask named after its structure; without a name, its values are unknown."""
    return binary(structure, on=on) if structure else Labelling(on, {0: 0}, {}, others=True)


def _make_case(
    name: str, cells: dict[str, str], columns: _Columns, info: list[str], folder: Path
) -> Case:
    faults = []
    found: dict[str, dict[str, Path]] = {"image": {}, "label": {}}
    for kind, heads in (("image", columns.images), ("label", tuple(columns.labels))):
        for head in heads:
            path = folder / cells[head]
            if not cells[head]:
                faults.append(f"{head} {kind} is missing")
            elif not os.path.isfile(path):  # Path.is_file raises in a folder that is locked
                faults.append(f"{head} {kind} is missing: there is no file {cells[head]}")
            else:
                found[kind][head] = path
    split = cells.get(_SPLIT, "")
    if split and split.lower() not in _PARTS:
        raise ValueError(f"{_SPLIT} must be train, validate, test or empty; {name} has {split!r}")
    facts = {head: cells[head] for head in info}
    if split:
        facts[_SPLIT] = _PARTS[split.lower()]
    return Case(name, found["image"], found["label"], columns.labels, facts, tuple(faults))


class _TableLayout:
    """``read_table`` as a layout of ``open_dataset``."""

    name = "table"

    def claims(self, root: Path) -> bool:
        """Whether a folder holds ``cases.csv``, or the root is a CSV file."""
        return (os.path.isfile(root) and root.suffix == ".csv") or os.path.isfile(root / FILE)

    def open(self, root: Path) -> Dataset:
        """Find the cases of a table."""
        return read_table(root)


LAYOUT = _TableLayout()

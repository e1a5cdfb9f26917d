"""A folder in no layout: what its file names suggest, as a start for a table."""

import os
from collections.abc import Iterable
from pathlib import Path

from cmrfast.data.datasets.case import Case, Dataset
from cmrfast.data.datasets.layout import natural_key, stem, walk_files
from cmrfast.data.datasets.names import split_label
from cmrfast.data.datasets.table import labelling_of
from cmrfast.errors import FileError


def guess_cases(root: str | os.PathLike[str]) -> Dataset:
    """Cases and sequences by the names of folders and files; images are not read.

    Where files lie in folders of their own, each folder is a case and each file name a sequence or
    a label. In a single folder, the last word of a name is the sequence, and the case the rest.
    """
    top = Path(root)
    if not top.is_dir():
        raise FileError(f"guess_cases: {top} is not a folder")
    files = [path for path in walk_files([top.absolute()]) if stem(path)]
    if not files:
        raise FileError(f"guess_cases: {top} holds no NIfTI file")
    cases: dict[str, dict[str, Path]] = {}
    folders: dict[str, Path] = {}
    for path, case, name in _name_files(files, top.absolute()):
        if folders.setdefault(case, path.parent) != path.parent:
            raise FileError(
                f"guess_cases: the files in {folders[case]} and in {path.parent} would be one "
                f"case, {case}; rename one of the folders"
            )
        cases.setdefault(case, {}).setdefault(name, path)
    ordered = sorted(cases, key=natural_key)
    return Dataset("folder", top, tuple(_make_case(name, cases[name]) for name in ordered))


def _name_files(files: list[Path], top: Path) -> Iterable[tuple[Path, str, str]]:
    """Each file with its case and what it is of the case."""
    for path in files:
        name = stem(path) or ""
        if path.parent == top:
            case, _, rest = name.rpartition("_")
            yield path, case or name, rest if case else "image"
        else:
            case = "_".join(path.parent.relative_to(top).parts)
            yield path, case, name.removeprefix(f"{path.parent.name}_")


def _make_case(name: str, files: dict[str, Path]) -> Case:
    parts = {key: found for key in files if (found := split_label(key))}
    return Case(
        name,
        images={key: path for key, path in files.items() if key not in parts},
        labels={key: files[key] for key in parts},
        labelling={key: labelling_of(structure, on="") for key, (_, structure) in parts.items()},
    )

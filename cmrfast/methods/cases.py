"""The cases of a data set in any layout, as a method reads them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cmrfast.data.datasets import Case, Dataset, match, open_dataset, recognise
from cmrfast.data.datasets.case import binary
from cmrfast.data.datasets.match import Values
from cmrfast.errors import FileError
from cmrfast.methods.method import AnyMethod


def open_cases(
    method: AnyMethod,
    root: str | os.PathLike[str],
    *,
    layout: str | None = None,
    preferred: Sequence[str] = (),
    values: Values | None = None,
) -> Dataset:
    """Open a data set; of one in a layout that is not the method's own, names are matched.

    Args:
        method: that reads it.
        root: of the data set.
        layout: that it has; default the one that is recognised.
        preferred: layouts to try before the method's own.
        values: of structures in the masks, instead of those of the layout.
    """
    if layout is None:
        dataset = recognise(root, (*preferred, *method.datasets))
    else:
        dataset = open_dataset(layout, root)
    return match_cases(method, dataset, values)


def match_cases(method: AnyMethod, dataset: Dataset, values: Values | None = None) -> Dataset:
    """The data set with a method's names; arguments as in ``open_cases``."""
    if dataset.name in method.datasets and not values:
        return dataset
    return replace(
        dataset, cases=tuple(match(case, method.needs, values) for case in dataset.cases)
    )


def trainable(method: AnyMethod, dataset: Dataset) -> tuple[str, ...]:
    """Names of the cases that have what training takes.

    Raises:
        FileError: there is none; says what is missing and what there is.
    """
    needs = method.needs
    names = tuple(case.name for case in dataset.cases if not needs.missing(case, needs.train))
    if not names:
        lacking = {m for case in dataset.cases for m in needs.missing(case, needs.train)}
        stored = open_dataset(dataset.name, dataset.root)
        images = dict.fromkeys(name for case in stored for name in case.images)
        labels = dict.fromkeys(_with_structures(c, name) for c in stored for name in c.labels)
        more = [f"and {len(stored.faults) - 1} more"] if len(stored.faults) > 1 else []
        faults = "; ".join(["", *stored.faults[:1], *more])
        raise FileError(
            f"train: no case of {dataset.root} ({dataset.name}) has all that {method.name} takes; "
            f"missing: {', '.join(sorted(lacking))}; "
            f"images there: {', '.join(images) or 'none'}; labels: {', '.join(labels) or 'none'}"
            f"{faults}"
        )
    return names


def _with_structures(case: Case, label: str) -> str:
    """A label and what its values mean."""
    structures = ", ".join(case.labelling[label].classes)
    return f"{label} ({structures or 'values without names: give them as labels'})"


def case_of_files(method: AnyMethod, files: Mapping[str, str | os.PathLike[str]]) -> Case:
    """A case from files by the method's names, such as ``earlier`` and ``later``, in any case.

    It is named after the first file.

    Args:
        method: that will read it.
        files: sequence or mask → file, or folder of DICOM slices. Masks hold 0 and 1.

    Raises:
        ValueError: a name is not the method's, or one that prediction takes is missing.
    """
    needs, taken = method.needs, method.needs.predict
    known = {name.lower(): name for name in (*taken.images, *taken.labels, *taken.optional)}
    unknown = [name for name in files if name.lower() not in known]
    if unknown:
        raise ValueError(
            f"{method.name}: files are {', '.join(known.values())}; got {', '.join(unknown)}"
        )
    named = {known[name.lower()]: Path(path) for name, path in files.items()}
    masks = {name: need for name, need in needs.masks.items() if name not in taken.images}
    labels = {name: path for name, path in named.items() if name in masks}
    case = Case(
        name=next(iter(named.values())).name.removesuffix(".gz").removesuffix(".nii"),
        images={name: path for name, path in named.items() if name not in masks},
        labels=labels,
        labelling={
            name: binary(next(iter(masks[name].structures)), on=masks[name].on) for name in labels
        },
    )
    missing = needs.missing(case, taken)
    if missing:
        raise ValueError(f"{method.name}: one case takes more files; missing: {', '.join(missing)}")
    return case

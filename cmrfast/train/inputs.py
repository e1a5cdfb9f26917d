"""Inputs: hashes of the files that a run learned from, so that a change of one is noticed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cmrfast.data.datasets.case import Case
from cmrfast.errors import FileError
from cmrfast.files import path_digest
from cmrfast.methods import AnyTask

#: patient → file, such as ``image LGE`` → hash; None for a file that cannot be read. Files that the
#: recipe names are those of the patient ``recipe``, the weights that it starts from are ``init``.
Digests = Mapping[str, Mapping[str, str | None]]


def input_digests(task: AnyTask, cases: Sequence[Case]) -> Digests:
    """Hashes of the files that a task may read of these cases, and of those its recipe names."""
    files: dict[str, dict[str, Path]] = {}
    for case in cases:  # a patient occurs twice where it trains and validates with other sequences
        files.setdefault(case.name, {}).update(task.files(case))
    if named := task.recipe.files():
        files["recipe"] = named
    return {
        case: {name: path_digest(path) for name, path in paths.items()}
        for case, paths in files.items()
    }


def require_same_inputs(stored: Digests, now: Digests) -> None:
    """Raise ``FileError`` unless all stored hashes are those of now; names what differs."""
    changed = [
        f"{case} {name}"
        for case in {**stored, **now}
        for name in {**stored.get(case, {}), **now.get(case, {})}
        if stored.get(case, {}).get(name) != now.get(case, {}).get(name)
    ]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise FileError(
            "train: files have changed since the run began, so it cannot go on: "
            f"{', '.join(changed[:5])}{more}"
        )


def digests_from_json(stored: Mapping[str, object]) -> Digests:
    """Read what ``input_digests`` made; anything else raises ``ValueError``."""
    digests: dict[str, dict[str, str | None]] = {}
    for case, files in stored.items():
        if not isinstance(files, dict) or not all(
            isinstance(digest, str | None) for digest in files.values()
        ):
            raise ValueError(f"inputs: {case} must map files to hashes")
        digests[case] = files
    return digests

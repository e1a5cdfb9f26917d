"""Which files Python opens."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_RECORDS: list[set[Path]] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _RECORDS and isinstance(arguments[0], str | bytes | os.PathLike):
        path = Path(os.path.abspath(os.fsdecode(arguments[0])))
        for record in _RECORDS:
            record.add(path)


sys.addaudithook(_note)  # for good: a hook cannot be removed


@contextmanager
def record_opened() -> Iterator[set[Path]]:
    """The paths that are opened inside, by any thread."""
    record: set[Path] = set()
    _RECORDS.append(record)
    try:
        yield record
    finally:
        _RECORDS.remove(record)

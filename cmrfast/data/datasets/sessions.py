"""The order of a subject's sessions in BIDS: by time where it is known, else by their labels."""

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path

from cmrfast.data.datasets.layout import read_rows
from cmrfast.errors import FileError

#: Labels of a first session.
FIRST = ("baseline", "bl", "pre", "screening")


def order_sessions(labels: Collection[str], times: Mapping[str, datetime]) -> list[str] | None:
    """The labels of sessions, the earliest first; None where neither times nor labels say it.

    Labels say it if they differ by numbers alone, one of ``FIRST`` aside.

    Args:
        labels: of the sessions, empty for files without a session.
        times: label → when it was, of sessions for which that is known.

    Example:
        >>> order_sessions(["10", "2"], {}), order_sessions(["m12", "baseline"], {})
        (['2', '10'], ['baseline', 'm12'])
        >>> order_sessions(["before", "after"], {}) is None
        True
    """
    if len({times[label] for label in labels if label in times}) == len(labels):
        return sorted(labels, key=times.__getitem__)
    numbers = {label: [int(n) for n in re.findall(r"\d+", label)] for label in labels}
    first = [label for label in labels if label.lower() in FIRST]
    others = sorted((label for label in labels if label not in first), key=numbers.__getitem__)
    alike = len({re.sub(r"\d+", "0", label.lower()) for label in others}) <= 1
    distinct = len({tuple(numbers[label]) for label in others}) == len(others)
    known = "" not in labels and len(first) <= 1 and alike and distinct
    return [*first, *others] if known else None


def read_times(table: Path) -> dict[str, datetime]:
    """Label → ``acq_time`` of a ``sessions.tsv``, of the sessions that have one.

    Raises:
        FileError: it cannot be read, or a time is none.
    """
    times = {}
    try:
        for row in read_rows(table):
            text = (row.get("acq_time") or "n/a").strip()
            if text not in ("", "n/a"):
                time = datetime.fromisoformat(text)
                time = time if time.tzinfo else time.replace(tzinfo=UTC)
                times[row["session_id"].strip().removeprefix("ses-")] = time
    except OSError as error:
        raise FileError(f"read_bids: {table}: {error.strerror or error}") from error
    except (AttributeError, KeyError, ValueError) as error:
        raise FileError(
            f"read_bids: {table} must have the columns session_id and acq_time, "
            f"a time such as 2020-01-31T09:30:00 or n/a: {error}"
        ) from error
    return times

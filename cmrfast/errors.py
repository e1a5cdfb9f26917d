"""Exceptions that callers may want to distinguish, and what their messages share."""

from collections.abc import Iterable


class FileError(Exception):
    """A file cannot be read or written; the message names the file and the problem."""


class CheckpointError(Exception):
    """A checkpoint is damaged, or belongs to another model."""


class NotFiniteError(ValueError):
    """An image holds NaN or infinite values."""


def did_you_mean(given: object, known: Iterable[object]) -> str:
    """The end of a message about an unknown name: the known one that it resembles most, if any.

    Example:
        >>> did_you_mean("learning_rat", ["learning_rate", "batch"])
        '; did you mean learning_rate?'
    """
    from difflib import get_close_matches

    close = get_close_matches(str(given), [str(name) for name in known], n=1)
    return f"; did you mean {close[0]}?" if close else ""

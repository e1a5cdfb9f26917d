"""Exceptions that callers may want to distinguish."""


class FileError(Exception):
    """A file cannot be read or written; the message names the file and the problem."""


class CheckpointError(Exception):
    """A checkpoint is damaged, or belongs to another model."""


class NotFiniteError(ValueError):
    """An image holds NaN or infinite values."""

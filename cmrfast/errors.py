"""Errors that a caller may want to tell apart."""


class FileError(Exception):
    """A file cannot be read or written as asked; the message names the file and what is wrong."""


class CheckpointError(Exception):
    """A checkpoint is damaged, or belongs to another model."""


class NotFiniteError(ValueError):
    """An image holds NaN or infinite values."""

"""The two errors that are about files rather than values."""


class FileError(Exception):
    """A file cannot be read or written as asked; the message names the file and what is wrong."""


class CheckpointError(Exception):
    """A checkpoint is damaged, or belongs to another model."""

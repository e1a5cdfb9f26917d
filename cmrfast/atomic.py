"""Atomic writes: a file is replaced whole or not at all."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; the file written there replaces ``path`` at the end.

    The bytes are on the disk before the name changes. If the block raises, the new file is removed
    and the old one is untouched. A file keeps its permissions: patient data stays as private as it
    was. A link at ``path`` is replaced, never followed.

    Args:
        path: the file to replace or create; its folder must exist.
    """
    # A name has at most 255 bytes, whatever the number of characters.
    start = os.fsencode(path.name)[:200].decode("utf-8", "ignore")
    temporary = path.with_name(f".{start}.{secrets.token_hex(6)}.tmp")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        with suppress(FileNotFoundError):
            before = path.lstat()
            if stat.S_ISREG(before.st_mode):
                temporary.chmod(stat.S_IMODE(before.st_mode))
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

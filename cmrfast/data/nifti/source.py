"""The bytes of a plain or gzip file, with a bound on how many there can be."""

import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from cmrfast.errors import FileError

#: DEFLATE cannot expand further than this.
GZIP_LIMIT = 1032
_CHUNK = 1 << 22


class Source:
    """A file opened for reading; ``capacity`` bytes at most can come out of it."""

    def __init__(self, path: Path, stream: BinaryIO, size: int) -> None:
        self.path = path
        self.size = size
        self.packed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        self.capacity = size * GZIP_LIMIT if self.packed else size
        self._stream = _decompressed(stream) if self.packed else stream

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes, fewer only at the end."""
        buffer = bytearray(count)
        return bytes(buffer[: self.fill(memoryview(buffer))])

    def fill(self, buffer: memoryview) -> int:
        """Read into the whole buffer; the count is smaller only at the end of the file."""
        filled = 0
        while filled < len(buffer):
            piece = self._stream.read(min(_CHUNK, len(buffer) - filled))
            if not piece:
                break
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
        return filled

    def seek(self, position: int) -> None:
        """Go forward to a position of the unpacked bytes."""
        self._stream.seek(position)


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a regular file; whatever goes wrong while it is open is a ``FileError``."""
    if "\0" in str(path):
        raise FileError(f"read_nifti: {str(path)!r} is no file name")
    try:
        with open(path, "rb", opener=_open_nonblocking) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FileError(f"read_nifti: {path} is not a regular file")
            yield Source(path, stream, status.st_size)
    except OSError as error:
        raise FileError(f"read_nifti: {path}: {error.strerror or error}") from error
    except _gzip_errors() as error:
        raise FileError(f"read_nifti: {path}: damaged gzip stream ({error})") from error


def _open_nonblocking(path: str, flags: int) -> int:
    """Open a pipe at once, too, so that it can be refused."""
    return os.open(path, flags | os.O_NONBLOCK)


def _decompressed(stream: BinaryIO) -> BinaryIO:
    """The gzip stream's content, through isal where it is installed."""
    try:
        from isal import igzip
    except ImportError:
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream, mode="rb"))
    return cast(BinaryIO, igzip.IGzipFile(fileobj=stream, mode="rb"))


def _gzip_errors() -> tuple[type[Exception], ...]:
    """What a damaged gzip stream raises, apart from ``OSError``."""
    try:
        from isal.igzip_lib import IsalError
    except ImportError:
        return EOFError, zlib.error
    return EOFError, zlib.error, cast(type[Exception], IsalError)

"""The bytes of a plain or gzip file, with an upper bound on their number."""

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from cmrfast.errors import FileError
from cmrfast.files import open_regular

#: Largest expansion factor of DEFLATE.
GZIP_LIMIT = 1032
_CHUNK = 1 << 22


class Source:
    """A file opened for reading; it can hold at most ``capacity`` bytes of content."""

    def __init__(self, path: Path, stream: BinaryIO, size: int) -> None:
        self.path = path
        self.size = size
        self.compressed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        self.capacity = size * GZIP_LIMIT if self.compressed else size
        self._stream = _decompressed(stream) if self.compressed else stream

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
        """Move forward to a position in the decompressed content; all before it is inflated."""
        self._stream.seek(position)


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a regular file; any failure while it is open is raised as ``FileError``."""
    try:
        with open_regular(path) as stream:
            yield Source(path, stream, os.fstat(stream.fileno()).st_size)
    except OSError as error:
        raise FileError(f"read_nifti: {path}: {error.strerror or error}") from error
    except _gzip_errors() as error:
        raise FileError(f"read_nifti: {path}: damaged gzip stream ({error})") from error


def _decompressed(stream: BinaryIO) -> BinaryIO:
    """The content of a gzip stream, decompressed by isal if it is installed."""
    try:
        from isal import igzip
    except ImportError:
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream, mode="rb"))
    return cast(BinaryIO, igzip.IGzipFile(fileobj=stream, mode="rb"))


def _gzip_errors() -> tuple[type[Exception], ...]:
    """The exceptions of a damaged gzip stream, apart from ``OSError``."""
    try:
        from isal.igzip_lib import IsalError
    except ImportError:
        return EOFError, zlib.error
    # OverflowError: a file name in the gzip header that exceeds isal's buffer.
    return EOFError, zlib.error, OverflowError, cast(type[Exception], IsalError)

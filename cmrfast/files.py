"""Files that others may have made: regular ones only, hashed, and JSON that is read by type."""

import errno
import json
import os
import stat
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

#: No JSON file of this package comes near it; a larger one is refused before it is read.
_JSON_LIMIT = 256 << 20
_DEPTH_LIMIT = 50  # of ours, a checkpoint's state is the deepest, with about 15
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: it cannot be opened, or it is a pipe, a device or a folder, none of which ends.
    """
    if "\0" in os.fspath(path):
        raise OSError(errno.EINVAL, "is not a file name", os.fspath(path))
    # Non-blocking: opening a named pipe without a writer would otherwise hang.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        raise OSError(errno.EINVAL, "is not a regular file", os.fspath(path))
    return os.fdopen(descriptor, "rb")


def file_digest(path: str | os.PathLike[str]) -> str:
    """Hash of a regular file's bytes, as 40 hexadecimal digits."""
    digest = blake2b(digest_size=20)
    with open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def path_digest(path: str | os.PathLike[str]) -> str | None:
    """Hash of a file, or of the names and bytes of the files in a folder, such as DICOM slices.

    Subfolders do not count. None if anything cannot be read.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            return file_digest(path)
        digest = blake2b(digest_size=20)
        for file in sorted(file for file in path.iterdir() if file.is_file()):
            digest.update(f"{file.name}\0{file_digest(file)}\0".encode("utf-8", "surrogateescape"))
    except OSError:
        return None
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ``take`` reads its entries.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object, is nested too deeply, or is too large.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > _JSON_LIMIT:
            raise ValueError(f"it is larger than {_JSON_LIMIT >> 20} MiB")
        text = file.read()
    try:
        content = json.loads(text.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _depth(content) > _DEPTH_LIMIT:
        raise ValueError("it is nested too deeply")
    if not isinstance(content, dict):
        raise ValueError(f"it must hold a JSON object; it holds {_kind_of(content)}")
    return content


def take(content: dict[str, Any], name: str, *kinds: type) -> Any:
    """An entry that must have one of some kinds; ``float`` takes whole numbers too.

    Raises:
        ValueError: it is missing or of another kind.
    """
    wanted = " or ".join(_KINDS[kind] for kind in kinds)
    if name not in content:
        raise ValueError(f"{name} is missing; it must be {wanted}")
    value = content[name]
    allowed = {*kinds, int} if float in kinds else set(kinds)
    if type(value) not in allowed:  # not isinstance: true is no number
        raise ValueError(f"{name} must be {wanted}; it is {_kind_of(value)}")
    return value


def _depth(content: object) -> int:
    """Levels of lists and objects, without recursion."""
    depth, level = 0, [content]
    while level := [node for node in level if isinstance(node, dict | list)]:
        depth += 1
        level = [n for node in level for n in (node.values() if isinstance(node, dict) else node)]
    return depth


def _kind_of(value: object) -> str:
    return _KINDS.get(type(value), type(value).__name__)

"""The lock of a run's folder: one training at a time, whatever process or machine it runs on.

The file ``lock`` names the owner's process and host. On one machine the kernel locks it and
releases it when the owner ends, for whatever reason. An owner on another machine counts as alive
while it renews the time stamp of the file, which it does every two seconds. Only changes of that
stamp are looked at, so clocks that differ do no harm.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cmrfast.errors import FileError

_log = logging.getLogger(__name__)
_FILE = "lock"
_RENEW_S = 2.0
_WATCH_S = 10.0  # an owner elsewhere that does not renew its lock for so long has ended


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is made where missing.

    Raises:
        FileError: another process holds it; names the process and its host.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(folder / _FILE)
    except OSError as error:
        raise FileError(f"train: {folder} cannot be locked: {error.strerror or error}") from error
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(descriptor, ended), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        with contextlib.suppress(OSError):
            (folder / _FILE).unlink()
            if made:
                folder.rmdir()  # only where nothing came of it
        os.close(descriptor)


def _lock(file: Path) -> int:
    """Lock the file; the descriptor that is returned holds the lock."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _own(descriptor, file)
        except BaseException:
            os.close(descriptor)
            raise
        # An owner that was about to end may have removed the file that was opened.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(file.stat(), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)


def _own(descriptor: int, file: Path) -> None:
    """Become the owner of an open lock file."""
    owner = os.pread(descriptor, 1000, 0).decode("utf-8", "replace").strip()
    # The kernel knows the processes of this machine, and need not know those of others.
    elsewhere = bool(owner) and owner.rpartition(" on ")[2] != socket.gethostname()
    held = False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            held = True
        elif error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            elsewhere = bool(owner)  # this file system has no locks: the time stamp has to tell
        else:
            raise
    if held or (elsewhere and _is_renewed(file)):
        raise FileError(f"train: {file.parent} is being trained by {owner or 'another process'}")
    if owner:
        _log.warning("train: %s was left locked by %s, which has ended", file.parent, owner)
    os.ftruncate(descriptor, 0)
    with contextlib.suppress(OSError):  # on a full disk it holds without a name
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _is_renewed(file: Path) -> bool:
    """Whether somebody renews the lock; opens it each time, as network file systems need."""
    seen, ends = _stamp(file), time.monotonic() + _WATCH_S
    while time.monotonic() < ends:
        time.sleep(_RENEW_S / 4)
        if _stamp(file) != seen:
            return True
    return False


def _stamp(file: Path) -> int:
    with file.open("rb") as stream:
        return os.fstat(stream.fileno()).st_mtime_ns


def _renew(descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(_RENEW_S):
        with contextlib.suppress(OSError):
            os.utime(descriptor)

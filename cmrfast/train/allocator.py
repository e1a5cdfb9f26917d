"""Memory on a CPU: the process keeps what it frees, for the next tensor."""

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # options of mallopt, from malloc.h
_MMAPS = 65536  # what glibc begins with
# glibc raises the sizes that it maps and gives back by itself, up to these, until one is set.
_MMAP_BYTES, _TRIM_BYTES = 32 << 20, 64 << 20
_lock = threading.Lock()
_inside = 0


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Let new tensors reuse freed memory meanwhile, on Linux with glibc; elsewhere, do nothing.

    glibc gives the memory of a large tensor back to the system as soon as it is freed. The next
    tensor then gets new pages, and the first write to each of them takes time: up to a third of a
    training step. Inside this context, all threads of the process keep what they free; at its end,
    it goes back to the system. Training, evaluation and prediction do this by themselves.

    Example:
        >>> import torch
        >>> with keep_freed_memory():
        ...     batch = torch.zeros(8, 1, 56, 56, 56)
    """
    global _inside
    libc = _glibc()
    with _lock:
        _inside += 1
        if libc and _inside == 1:
            libc.mallopt(_MMAP_MAX, 0)
            libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if libc and _inside == 0:
                libc.mallopt(_MMAP_MAX, _MMAPS)
                libc.mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)
                libc.mallopt(_TRIM_THRESHOLD, _TRIM_BYTES)
                give_back_freed_memory()


def give_back_freed_memory() -> None:
    """Give the system what this process has freed and kept; without glibc, do nothing."""
    if libc := _glibc():
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None

"""Ranks: the processes that torchrun started, or this process alone."""

import atexit
import gc
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from cmrfast.errors import did_you_mean

_FAILURE = "cmrfast/failure"
_HOST, _EXCHANGES = "cmrfast/host", "cmrfast/exchanges"
_BUCKET_BYTES = 32 << 20
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


class Presence:
    """Counts the exchanges of every rank in the store, so that one that hangs can be named.

    Args:
        store: that all ranks reach.
        rank: of this process.
        count: of ranks.
    """

    def __init__(self, store: Any, rank: int, count: int) -> None:
        self.store, self.rank, self.count, self.exchanges = store, rank, count, 0
        store.set(f"{_HOST}/{rank}", socket.gethostname())
        self._publish()

    def arrive(self) -> None:
        """Note that this rank has come to its next exchange."""
        self.exchanges += 1
        self._publish()

    def _publish(self) -> None:
        self.store.set(f"{_EXCHANGES}/{self.rank}", str(self.exchanges))

    def missing(self) -> str | None:
        """The ranks that this one waits for, with their hosts; None if all have come."""
        late = []
        for rank in range(self.count):
            if not self.store.check([f"{_EXCHANGES}/{rank}"]):
                late.append(f"rank {rank} of {self.count}")
            elif int(self.store.get(f"{_EXCHANGES}/{rank}")) < self.exchanges:
                host = self.store.get(f"{_HOST}/{rank}").decode()
                late.append(f"rank {rank} of {self.count} on {host}")
        return ", ".join(late) or None


@dataclass(frozen=True)
class Ranks:
    """This process among all. Alone, ``group`` is None and nothing is exchanged."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: Any = None
    presence: Presence | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes the shared files and output."""
        return self.rank == 0

    def own_part(self, samples: Tensor) -> Tensor:
        """This rank's part of a batch; the parts differ in size by one at most."""
        return samples.tensor_split(self.count)[self.rank]

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their mean over ranks, in buckets, the same bits on every rank."""
        if not self._exchange():
            return
        bucket: list[Tensor] = []
        for tensor in tensors:
            bucket.append(tensor)
            if sum(t.nbytes for t in bucket) >= _BUCKET_BYTES:
                self._average(bucket)
                bucket = []
        if bucket:
            self._average(bucket)

    def _exchange(self) -> bool:
        """Whether there is anybody to exchange with; notes that this rank has come to do it."""
        if self.presence is not None:
            self.presence.arrive()
        return self.group is not None

    def _average(self, bucket: list[Tensor]) -> None:
        flat = torch.cat([t.detach().flatten() for t in bucket])
        dist.all_reduce(flat, group=self.group)
        flat /= self.count
        for tensor, mean in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def broadcast(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if not self._exchange():
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank, in order of rank."""
        if not self._exchange():
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.group)
        return values


@contextmanager
def process_group(device: str = "auto", *, timeout_s: float = 600.0) -> Iterator[Ranks]:
    """Join the processes that torchrun started; without torchrun this process is alone.

    Within another ``process_group`` the same one is used. A rank that fails leaves its cause for
    the others, which report it: immediately if the connection breaks, else after the timeout.

    Args:
        device: cpu, cuda, cuda:1 …, or auto: a GPU where there is one.
        timeout_s: how long a rank waits for the others.
    """
    if _alone():
        before = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        try:
            yield Ranks(device=_device(device, 0))
        finally:
            if before is not None:
                torch.cuda.set_device(before)
        return
    local = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size(), local, dist.group.WORLD)
        return
    atexit.unregister(_join_threads)  # once, however many groups there were
    atexit.register(_join_threads)
    timeout = timedelta(seconds=timeout_s)
    store, rank, count = next(rendezvous("env://", timeout=timeout))
    dist.init_process_group(
        "nccl" if local.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=count,
        timeout=timeout,
    )
    presence = Presence(store, rank, count)
    try:
        yield Ranks(rank, count, local, dist.group.WORLD, presence)
    except Exception as error:
        cause = _cause(store)
        if cause is None and "timed out" in str(error).lower() and (late := presence.missing()):
            cause = f"{late}, which did not come within {timeout_s:g} s"
        if cause is None:
            store.set(_FAILURE, f"rank {rank} of {count}: {_in_words(error)}")
            raise
        raise RuntimeError(f"stopped because of {cause}") from error
    finally:
        dist.destroy_process_group()


def _join_threads() -> None:
    """Free what is left of process groups, which joins their threads.

    A thread that frees a tensor while the interpreter ends aborts the process, even though all its
    work is done.
    """
    gc.collect()


def is_first_rank() -> bool:
    """Whether this process is the one that prints, of those that torchrun started."""
    return _alone() or int(os.environ.get("RANK", "0")) == 0


def _alone() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def _cause(store: Any) -> str | None:
    """The cause that another rank wrote; waits a second for it."""
    for _ in range(20):
        if store.check([_FAILURE]):
            return cast(bytes, store.get(_FAILURE)).decode()
        time.sleep(0.05)
    return None


def _in_words(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


def require_device(name: str) -> None:
    """Raise unless a text is the name of a device, or auto."""
    if not _DEVICE.fullmatch(name):
        known = {"gpu": "cuda"}.get(name, name)
        raise ValueError(
            f"device: must be auto, cpu, cuda or cuda:N; got {name!r}"
            f"{did_you_mean(known, ('auto', 'cpu', 'cuda'))}"
        )


def _device(name: str, local_rank: int) -> torch.device:
    require_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device: {name} was asked for, but torch sees no GPU")
        if device.index is None:
            device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    return device

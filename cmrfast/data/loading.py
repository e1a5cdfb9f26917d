"""Batches of an epoch: shuffled sample numbers, and batches made ahead of time by threads."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from torch import Tensor

from cmrfast.data.random import order

Key = TypeVar("Key")
Batch = TypeVar("Batch")


def batches(seed: int, epoch: int, count: int, batch: int, *, drop_last: bool) -> list[Tensor]:
    """The samples of an epoch, shuffled, as batches of sample numbers.

    Args:
        seed, epoch: of the shuffle.
        count: samples of the epoch.
        batch: samples of a batch; one batch of ``count`` where there are fewer.
        drop_last: leave out an incomplete last batch, unless it is the only one.

    Example:
        >>> [len(b) for b in batches(0, 0, 10, 4, drop_last=False)]
        [4, 4, 2]
    """
    if batch < 1:
        raise ValueError(f"batches: batch must be >= 1; got {batch}")
    parts = list(order(seed, epoch, count).split(batch))
    return parts[:-1] if drop_last and len(parts) > 1 and len(parts[-1]) < batch else parts


class Prefetch(Generic[Key, Batch]):
    """Batches in the order of their keys, made by threads while earlier ones are used.

    What reading and resampling cost is spent outside Python's lock, so threads are enough, and
    nothing has to be copied between processes.

    Args:
        make: a key's batch; called from any thread, so a function of its key alone.
        keys: one per batch.
        ahead: batches under way or waiting, beyond the one in use.
        threads: that make them.

    ``waited_s`` counts the seconds that the user of the batches had to wait for one.

    Example:
        >>> batches = Prefetch(lambda n: n * n, [1, 2, 3])
        >>> list(batches)
        [1, 4, 9]
    """

    def __init__(
        self,
        make: Callable[[Key], Batch],
        keys: Iterable[Key],
        *,
        ahead: int = 2,
        threads: int = 1,
    ) -> None:
        if ahead < 1 or threads < 1:
            raise ValueError(
                f"Prefetch: ahead and threads must be >= 1; got ahead={ahead}, threads={threads}"
            )
        self.make, self.keys, self.ahead, self.threads = make, keys, ahead, threads
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[Batch]:
        """The batches; an error of ``make`` is raised where its batch would have come."""
        keys = iter(self.keys)
        waiting: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="cmrfast-prefetch")
        try:
            for key in keys:
                waiting.append(pool.submit(self.make, key))
                if len(waiting) > self.ahead:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)
        finally:  # also where the loop over the batches is left early
            pool.shutdown(wait=True, cancel_futures=True)

    def _next(self, waiting: deque[Future[Batch]]) -> Batch:
        start = time.perf_counter()
        batch = waiting.popleft().result()
        self.waited_s += time.perf_counter() - start
        return batch

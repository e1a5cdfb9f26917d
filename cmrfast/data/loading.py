"""Batches of an epoch: shuffled sample numbers, and batches prefetched by threads."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from torch import Tensor

from cmrfast.data.random import order

Key = TypeVar("Key")
Item = TypeVar("Item")


def batches(seed: int, epoch: int, count: int, batch: int, *, drop_last: bool) -> list[Tensor]:
    """Shuffle the samples of an epoch and split them into batches of sample numbers.

    Args:
        seed, epoch: select the shuffle.
        count: number of samples in the epoch.
        batch: samples per batch; with fewer samples than that, there is one batch of ``count``.
        drop_last: drop an incomplete last batch, unless it is the only one.

    Example:
        >>> [len(b) for b in batches(0, 0, 10, 4, drop_last=False)]
        [4, 4, 2]
    """
    if batch < 1:
        raise ValueError(f"batches: batch must be >= 1; got {batch}")
    parts = list(order(seed, epoch, count).split(batch))
    return parts[:-1] if drop_last and len(parts) > 1 and len(parts[-1]) < batch else parts


class Prefetch(Generic[Key, Item]):
    """Batches in the order of their keys, made by threads while earlier ones are used.

    Reading and resampling release the GIL, so threads are enough and nothing has to be copied
    between processes.

    Args:
        make: returns the batch of a key; called from any thread, so it must depend on its key
            alone.
        keys: one per batch.
        ahead: batches in progress or ready, beyond the one in use.
        threads: number of threads that make batches.

    ``waited_s`` is the total time in seconds that the consumer waited for batches.

    Example:
        >>> squares = Prefetch(lambda n: n * n, [1, 2, 3])
        >>> list(squares)
        [1, 4, 9]
    """

    def __init__(
        self,
        make: Callable[[Key], Item],
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

    def __iter__(self) -> Iterator[Item]:
        """Yield the batches; an error in ``make`` is raised in place of its batch."""
        keys = iter(self.keys)
        pending: deque[Future[Item]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="cmrfast-prefetch")
        try:
            for key in keys:
                pending.append(pool.submit(self.make, key))
                if len(pending) > self.ahead:
                    yield self._next(pending)
            while pending:
                yield self._next(pending)
        finally:  # also if the consumer leaves its loop early
            pool.shutdown(wait=True, cancel_futures=True)

    def _next(self, pending: deque[Future[Item]]) -> Item:
        start = time.perf_counter()
        batch = pending.popleft().result()
        self.waited_s += time.perf_counter() - start
        return batch

"""Batches of an epoch, and prefetching them in order."""

import threading
import time

import pytest
import torch

from cmrfast.data.draws import order
from cmrfast.data.patches import batches
from cmrfast.data.prefetch import Prefetch


def test_batches_are_an_epochs_order_in_parts():
    parts = batches(0, 0, 1000, 32, drop_last=True)
    assert [len(p) for p in parts] == [32] * 31
    assert len(batches(0, 0, 7, 32, drop_last=True)[0]) == 7
    assert torch.equal(torch.cat(batches(0, 0, 1000, 32, drop_last=False)), order(0, 0, 1000))
    with pytest.raises(ValueError, match="batch must be >= 1"):
        batches(0, 0, 4, 0, drop_last=True)


@pytest.mark.parametrize("threads", [1, 3])
def test_prefetched_batches_come_in_order(threads):
    def make(n):
        time.sleep(0.002 * (n % 3))
        return n

    assert list(Prefetch(make, range(30), ahead=4, threads=threads)) == list(range(30))


def test_prefetch_works_ahead_and_no_further():
    made, started = [], threading.Event()

    def make(n):
        made.append(n)
        if n == 2:
            started.set()
        return n

    batches = iter(Prefetch(make, range(100), ahead=2))
    assert next(batches) == 0
    assert started.wait(5)
    assert made == [0, 1, 2]
    batches.close()


def test_prefetch_counts_waiting_and_hands_on_errors():
    slow = threading.Event()

    def make(n):
        if n == 0:
            slow.wait(0.05)
        if n == 2:
            raise OSError("unreadable")
        return n

    prefetch = Prefetch(make, range(4), ahead=1)
    batches = iter(prefetch)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="unreadable"):
        next(batches)
    assert prefetch.waited_s >= 0.04
    with pytest.raises(ValueError, match="ahead and threads must be >= 1"):
        Prefetch(make, range(4), ahead=0)

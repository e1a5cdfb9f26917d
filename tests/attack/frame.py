"""The frame of all attacks: numbered cases, each with its own random numbers, time and memory."""

import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Attack:
    """One kind of attack.

    Args:
        name: what is attacked.
        one: makes a hostile input from random numbers, in an empty folder, applies what is attacked
            and returns the outcome in a word or two, such as ``refused``; raises on a fault.
        seconds: of processor time that one case may take.
        mebibytes: that one case may add to the memory of this process.
        prepare: called once before the first case, outside its limits.
    """

    name: str
    one: Callable[[random.Random, Path], str]
    seconds: float = 5.0
    mebibytes: int = 256
    prepare: Callable[[], object] = lambda: None


@dataclass
class Outcome:
    """How many cases ended in which way, and the faults, each with the case's number."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[int, str] = field(default_factory=dict)
    slowest_s: float = 0.0
    most_mebibytes: float = 0.0

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {word}" for word, count in self.counts.most_common())
        return (
            f"{self.counts.total()} cases: {counts}; at most {self.slowest_s:.2f} s and "
            f"{self.most_mebibytes:.0f} MiB a case; {len(self.faults)} faults"
        )


def run(attack: Attack, seed: int, *, seconds: float = 0.0, first: int = 0) -> Outcome:
    """Run the cases from ``first`` on until the time is over; at least one."""
    attack.prepare()
    outcome, ends, number = Outcome(), time.monotonic() + seconds, first
    while number == first or time.monotonic() < ends:
        fault = _case(attack, seed, number, outcome)
        if fault:
            outcome.faults[number] = fault
        number += 1
    return outcome


def _case(attack: Attack, seed: int, number: int, outcome: Outcome) -> str | None:
    """Run one case; its fault in words, or None."""
    numbers = random.Random(f"{attack.name}/{seed}/{number}")
    folder = Path(tempfile.mkdtemp(prefix=f"attack-{attack.name}-"))
    before, began = start_peak(), time.process_time()
    try:
        with alarm(20 * attack.seconds):
            word = attack.one(numbers, folder)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome.counts["fault"] += 1
        return traceback.format_exc()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    took, grew = time.process_time() - began, peak() - before
    outcome.counts[word] += 1
    outcome.slowest_s = max(outcome.slowest_s, took)
    outcome.most_mebibytes = max(outcome.most_mebibytes, grew)
    if took > attack.seconds:
        return f"{word}, but it took {took:.1f} s; {attack.seconds:g} are allowed"
    if grew > attack.mebibytes:
        return f"{word}, but it took {grew:.0f} MiB; {attack.mebibytes} are allowed"
    return None


class _HangError(BaseException):
    """Not an Exception: what is attacked may catch those."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """End a case that hangs in Python; one that hangs in native code hangs the attack."""

    def ring(*_: object) -> None:
        raise _HangError(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def start_peak() -> float:
    """Memory in use, in MiB; from here on Linux counts the peak again, where it may be asked to."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def sanitized() -> bool:
    """Whether AddressSanitizer watches, which keeps freed memory for a while."""
    return "asan" in os.environ.get("LD_PRELOAD", "")

"""The log of a training: a JSON line for each step in a file, and progress on a stream."""

import json
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from cmrfast.atomic import atomic_write
from cmrfast.errors import FileError
from cmrfast.files import open_regular
from cmrfast.printable import printable
from cmrfast.train.trackers import Tracker

_PLAIN_EVERY_S = 5.0
_DAY_S = 86_400.0
#: The first step is slower than the others; an estimate waits for the second, or for so long.
_FIRST_STEP_S = 60.0
_LIMIT, _LINE_LIMIT = 4 << 30, 1 << 16  # far beyond ten million steps, and what a step logs


class Pace:
    """Throughput of each step, timed from the step before or from ``restart``."""

    def __init__(self) -> None:
        self._waited_s = 0.0
        self.restart()

    def restart(self) -> float:
        """Start the clock, after a pause that is not the step's; returns the time."""
        self._began = time.monotonic()
        return self._began

    def lap(self, samples: int, waited_s: float) -> dict[str, float]:
        """Facts of a step that has just ended.

        Args:
            samples: that it learned from.
            waited_s: that all steps so far have waited for batches.
        """
        now = time.monotonic()
        took, waited = now - self._began, waited_s - self._waited_s
        self._began, self._waited_s = now, waited_s
        return {"samples_per_s": samples / took, "waited_share": waited / took}


class Log:
    """Writes ``log.jsonl`` and shows progress.

    On resuming, lines of steps after the checkpoint are removed, so the file reads as if the run
    had never stopped. On a terminal the last line is rewritten in place; elsewhere a plain
    line comes every few seconds.

    Args:
        path: of the file.
        start: steps done so far.
        steps: in all.
        trackers: which get every step and validation score, too; they are closed with the log.
        stream: for the progress; None shows nothing.
    """

    def __init__(
        self,
        path: Path,
        *,
        start: int,
        steps: int,
        trackers: Sequence[Tracker] = (),
        stream: TextIO | None = None,
    ) -> None:
        self.path, self.start, self.steps, self.stream = path, start, steps, stream
        try:
            _cut(path, start)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._failed(error) from error
        self._began = self._said = time.monotonic()
        self._rewriting = self._warned = False
        self._trackers = trackers

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        for tracker in self._trackers:
            tracker.close()
        self._end_line()

    def step(self, step: int, losses: Mapping[str, float], **facts: float) -> None:
        """Log a finished step: the losses before its update, and facts such as ``lr``."""
        self._write({"step": step, **losses, **facts})
        for tracker in self._trackers:
            tracker.log(step, {**losses, **facts})
        now = time.monotonic()
        done, last = step - self.start, step == self.steps
        left_s = (now - self._began) / max(done, 1) * (self.steps - step)
        if left_s > _DAY_S and (done > 1 or now - self._began > _FIRST_STEP_S):
            self._warn_of_days(step, left_s)
        every = 0.2 if self.stream is not None and self.stream.isatty() else _PLAIN_EVERY_S
        if self.stream is None or (now - self._said < every and not last and done > 1):
            return
        self._said = now
        parts = [f"step {step}/{self.steps}"]
        parts += [f"{name} {value:.4g}" for name, value in losses.items()]
        parts.append(f"left {_duration(left_s)}")
        if "samples_per_s" in facts:
            parts.append(f"{facts['samples_per_s']:.3g} samples/s")
        if "waited_share" in facts:
            parts.append(f"waiting {100 * facts['waited_share']:.0f} %")
        self._show("  ".join(parts))

    def validation(self, step: int, score: float) -> None:
        """Log a score on the validation patients."""
        self._write({"step": step, "validation": score if math.isfinite(score) else None})
        for tracker in self._trackers:
            tracker.log(step, {"validation": score})
        self.say(f"step {step}/{self.steps}  validation score {score:.4g}")

    def say(self, text: str) -> None:
        """Write a line to the stream."""
        if self.stream is not None:
            self._end_line()
            self.stream.write(f"{printable(text)}\n")
            self.stream.flush()

    def _warn_of_days(self, step: int, left_s: float) -> None:
        """Say once that the rest takes days."""
        if not self._warned:
            self._warned = True
            self.say(
                f"at this pace the other {self.steps - step} steps take {_duration(left_s)}; "
                "--steps sets fewer, Ctrl-C stops and --resume continues"
            )

    def _show(self, line: str) -> None:
        """Write a line that the next one replaces, if the stream is a terminal."""
        assert self.stream is not None
        self._rewriting = self.stream.isatty()
        # A line that wraps could not be replaced.
        fitting = line[: shutil.get_terminal_size().columns - 1]
        self.stream.write(f"\r\033[K{fitting}" if self._rewriting else f"{line}\n")
        self.stream.flush()

    def _end_line(self) -> None:
        """Leave the line that is being rewritten as it is."""
        if self.stream is not None and self._rewriting:
            self.stream.write("\n")
        self._rewriting = False

    def _write(self, record: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> FileError:
        return FileError(f"train: {self.path} cannot be written: {error.strerror or error}")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; none where there is no log.

    Raises:
        FileError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > _LIMIT:
                raise OSError(f"it is larger than {_LIMIT >> 30} GiB")
            records = [_record(line) for line in iter(lambda: file.readline(_LINE_LIMIT), b"")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FileError(f"read_log: {path}: {error.strerror or error}") from error
    return [record for record in records if record is not None]


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None of one that is damaged, as by a process that was killed."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and type(record.get("step")) is int
    return record if whole else None


def _cut(path: Path, start: int) -> None:
    """Replace the log by its steps up to ``start``; where that fails, the old one stays."""
    kept = [record for record in read_log(path) if record["step"] <= start]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), "utf-8")


def _duration(seconds: float) -> str:
    if seconds > _DAY_S:
        return f"about {seconds / _DAY_S:.1f} days"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

"""The log: cut to a checkpoint without ever being lost, read whatever stands in it."""

import errno
import io
import json
import os

import pytest

from cmrfast import FileError
from cmrfast.train import log as module
from cmrfast.train.log import Log, read_log


def written(path, steps):
    path.write_text(
        "".join(json.dumps({"step": n, "loss": 1.0}) + "\n" for n in range(1, steps + 1))
    )


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    written(path, 1000)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "replace", full)
    monkeypatch.setattr("cmrfast.atomic.os.replace", full)
    with pytest.raises(FileError, match=r"log\.jsonl cannot be written: No space left on device"):
        Log(path, start=500, steps=2000)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_disk_that_fills_while_it_trains_is_an_error_of_files(tmp_path, monkeypatch):
    with Log(tmp_path / "log.jsonl", start=0, steps=2) as log:

        class Full:
            def write(self, text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            def close(self):
                pass

        monkeypatch.setattr(log, "_file", Full())
        with pytest.raises(FileError, match=r"log\.jsonl cannot be written: No space left"):
            log.step(1, {"loss": 1.0})


def test_it_is_cut_to_the_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    written(path, 10)
    with Log(path, start=4, steps=10) as log:
        log.step(5, {"loss": 2.0})
    assert [line["step"] for line in read_log(path)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "line",
    ['{"step": 3', "[]", "null", '{"step": "3"}', "{}", "[" * 60_000, "\xff", "x" * 200_000],
)
def test_lines_that_are_not_ours_are_passed_over(tmp_path, line):
    path = tmp_path / "log.jsonl"
    written(path, 2)
    with path.open("ab") as file:
        file.write(line.encode("latin-1") + b'\n{"step": 4}\n')
    assert [record["step"] for record in read_log(path)] == [1, 2, 4]


def test_what_does_not_end_is_refused(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_log(path) == []
    os.mkfifo(path)
    with pytest.raises(FileError, match="is not a regular file"):
        read_log(path)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FileError, match="larger than 4 GiB"):
        read_log(path)


class Stream(io.StringIO):
    """A terminal, or not."""

    def __init__(self, tty):
        super().__init__()
        self.tty = tty

    def isatty(self):
        return self.tty


@pytest.mark.parametrize("tty", [True, False])
def test_lines_end_before_the_next_begins(tmp_path, tty):
    stream = Stream(tty)
    with Log(tmp_path / "log.jsonl", start=0, steps=9, stream=stream) as log:
        log.step(1, {"loss": 1.0})
        log.say("stopped after step 1")
        log.step(9, {"loss": 1.0})
        log.validation(9, 0.5)
    lines = stream.getvalue().replace("\r\033[K", "").split("\n")
    assert lines[1] == "stopped after step 1"
    assert lines[2].startswith("step 9/9  loss 1")
    assert lines[3:] == ["step 9/9  validation score 0.5", ""]


def test_a_line_that_is_rewritten_does_not_wrap(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = Stream(tty=True)
    with Log(tmp_path / "log.jsonl", start=0, steps=1, stream=stream) as log:
        log.step(1, {"loss": 1.0}, samples_per_s=3.0, waited_share=0.25)
    line = stream.getvalue().removeprefix("\r\033[K").removesuffix("\n")
    assert line == "step 1/1  loss 1  left 0:00  3 samples/s"[:39]


def test_a_line_that_is_rewritten_ends_with_the_log(tmp_path):
    stream = Stream(tty=True)
    with Log(tmp_path / "log.jsonl", start=0, steps=2, stream=stream) as log:
        log.step(1, {"loss": 1.0})
        log.step(2, {"loss": 0.5})
    assert stream.getvalue().count("\r\033[K") == 2
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    ("seconds", "steps", "said"),
    [
        (10, 1000, None),  # under three hours
        (10, 20_000, "the other 19998 steps take about 2.3 days"),
        (300, 500, "the other 499 steps take about 1.7 days"),  # said after the first step
    ],
)
def test_days_are_said_once(tmp_path, monkeypatch, seconds, steps, said):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    stream = Stream(tty=False)
    with Log(tmp_path / "log.jsonl", start=0, steps=steps, stream=stream) as log:
        for step in range(1, 6):
            now[0] += seconds
            log.step(step, {"loss": 1.0})
    text = stream.getvalue()
    assert text.count("at this pace") == (said is not None)
    assert said is None or f"at this pace {said}; --steps sets fewer" in text
    assert ("left about 2.3 days" in text) == (steps == 20_000)


class Recorder:
    def __init__(self):
        self.seen, self.closed = [], False

    def log(self, step, values):
        self.seen.append((step, values))

    def close(self):
        self.closed = True


def test_trackers_get_every_step_and_score(tmp_path):
    tracker = Recorder()
    with Log(tmp_path / "log.jsonl", start=0, steps=2, trackers=[tracker]) as log:
        log.step(1, {"loss": 2.0}, lr=0.1)
        log.validation(1, 0.5)
        assert not tracker.closed
    assert tracker.seen == [(1, {"loss": 2.0, "lr": 0.1}), (1, {"validation": 0.5})]
    assert tracker.closed

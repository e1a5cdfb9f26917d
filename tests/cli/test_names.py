"""Hostile file names, through the command: nothing of them reaches the terminal as it is."""

import logging
import shutil
import sys
import warnings

import pytest

from tests.cli.test_runs import SMALL
from tests.support import training_task

#: Sets the title, breaks the line, clears it, turns the direction of writing, is no text.
HOSTILE = "\x1b]0;owned\x07\n\x1b[2K\rcmrfast: all well\u202eiin\udcff"
ESCAPED = r"\x1b]0;owned\x07\n\x1b[2K\rcmrfast: all well\u202eiin\udcff"


def is_safe(text):
    """Whether a terminal shows every character of some lines and obeys none."""
    return all(line.isprintable() for line in text.split("\n"))


@pytest.fixture(autouse=True)
def made_up_patients(monkeypatch, tmp_path):
    training_task.install(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)


def test_check(run, image):
    bad, good = image.with_name(f"{HOSTILE}1.nii"), image.with_name(f"{HOSTILE}2.nii.gz")
    bad.write_bytes(b"no image")
    image.rename(good)
    code, out, errors = run("check", bad, good, image.with_name(f"{HOSTILE}3.nii"))
    assert code == 1
    assert is_safe(out + errors)
    lines = out.splitlines()
    assert lines[0] == f"{image.parent}/{ESCAPED}1.nii"
    assert f"{ESCAPED}1.nii is not a NIfTI file" in lines[1]
    assert f"{image.parent}/{ESCAPED}2.nii.gz" in lines
    assert lines[-1].endswith(f"{ESCAPED}3.nii: No such file or directory")


def test_train_evaluate_report_and_predict(run, image):
    folder, options = (
        f"r{HOSTILE[:-1]}",
        ["--data", HOSTILE[:-1], "--device", "cpu", "--steps", 1, *SMALL],
    )
    code, out, errors = run("train", "siamese_lesion", "--out", folder, *options)
    assert code == 0
    assert is_safe(out + errors.replace("\r\x1b[K", ""))
    code, out, errors = run("train", "siamese_lesion", "--out", folder, *options)
    assert (code, out) == (1, "")
    assert is_safe(errors)
    code, out, errors = run("evaluate", folder)
    assert code == 0
    assert is_safe(out + errors)
    code, out, errors = run("report", folder)
    assert (code, out) == (0, f"r{ESCAPED[:-6]}/report.html\n")
    assert is_safe(errors)
    for command in ("evaluate", "report"):
        code, out, errors = run(command, f"none{HOSTILE}")
        assert (code, out) == (1, "")
        assert is_safe(errors)
        assert errors.count("\n") == 2
    given = [f"none{HOSTILE}.nii", f"is{HOSTILE}.nii"]
    shutil.copy(image, given[1])
    code, out, errors = run("view", *given[::-1])
    assert code == 1
    assert is_safe(out + errors)
    code, out, errors = run("view", given[1], given[1], "--max-mb", "1")
    assert (code, is_safe(out + errors)) == (0, True)
    code, out, errors = run("predict", folder, *given, "--out", f"p{HOSTILE}")
    assert code == 1
    assert is_safe(out + errors)
    assert f"failed: none{ESCAPED}.nii: predict: none{ESCAPED}.nii is neither" in errors


@pytest.mark.parametrize("word", [f"--{HOSTILE}", f"--x{HOSTILE}=3"])
def test_usage(run, word):
    for words in (("check", word), (word,), ("evaluate", "r", "--split", word)):
        code, out, errors = run(*words)
        assert code in (1, 2)
        assert is_safe(out + errors)
    code, out, errors = run(f"x{HOSTILE}")
    assert code == 2
    assert is_safe(out + errors)


def test_warnings_and_log_records(run, image, monkeypatch):
    def examine(path):
        warnings.warn(f"odd: {HOSTILE}", stacklevel=2)
        record = logging.makeLogRecord(
            {"msg": "left out: %s", "args": (HOSTILE,), "levelno": logging.WARNING}
        )
        logging.lastResort.handle(record)
        raise ValueError(HOSTILE)

    before = logging.lastResort, warnings.formatwarning
    monkeypatch.setattr("cmrfast.data.check.check", examine)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # pytest records warnings; a terminal shows them.
        monkeypatch.setattr(
            warnings,
            "showwarning",
            lambda *values: sys.stderr.write(warnings.formatwarning(*values[:4])),
        )
        code, _, errors = run("check", image)
    assert code == 1
    assert is_safe(errors)
    assert f"odd: {ESCAPED}" in errors
    assert f"left out: {ESCAPED}" in errors
    assert (logging.lastResort, warnings.formatwarning) == before

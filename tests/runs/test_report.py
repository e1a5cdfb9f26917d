"""The report: one page without outside files, that a browser shows."""

import os
import re
import shutil
import subprocess

import pytest
import torch

from cmrfast.runs.report import report
from cmrfast.train import train
from tests.support import training_task


@pytest.fixture
def run(tmp_path, monkeypatch):
    training_task.install(monkeypatch.setattr)
    changes = training_task.SMALL
    out = tmp_path / "<run>"
    return train("siamese_lesion", "nowhere", out, steps=3, changes=changes, device="cpu")


def test_the_page_needs_nothing_else(run):
    text = report(run, part="test").read_text()
    assert not re.search(r"(src|href)=(?!'data:)", text)
    assert "<run>" not in text  # names are escaped
    assert text.count("<input type=range") == 1  # one test patient is best, median and worst
    assert "81.61" not in text  # this task publishes nothing
    assert (run.path / "figures" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (run.path / "evaluation-test.csv").read_text().startswith("case,accuracy\n")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium")
def test_a_browser_shows_it(run, tmp_path):
    from matplotlib.image import imread

    page, picture = report(run), tmp_path / "page.png"
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    flags += "--disable-background-networking --disable-component-update --disable-sync"
    subprocess.run(
        [
            "chromium",
            *flags.split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1000,1800",
            f"--screenshot={picture}",
            f"file://{page}",
        ],
        check=True,
        capture_output=True,
        timeout=100,
        env={k: v for k, v in os.environ.items() if k != "LD_PRELOAD"},  # a sanitizer is not for it
    )
    shown = torch.from_numpy(imread(picture))[..., :3]
    assert shown.shape[:2] == (1800, 1000)
    dark = (shown.amax(-1) < 0.05).float().mean()
    assert 0.005 < dark < 0.5  # the pictures of slices are on it, on a white page
    assert (shown.amin(-1) > 0.95).float().mean() > 0.5

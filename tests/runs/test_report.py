"""The report: one page without outside files, that a browser shows."""

import os
import re
import shutil
import subprocess

import pytest
import torch

import cmrfast
from cmrfast import methods
from cmrfast.methods import Row
from cmrfast.runs.evaluate import Evaluation
from cmrfast.runs.report import _choose_cases, report
from cmrfast.runs.report.figures import draw_curves
from cmrfast.runs.report.page import render
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
    assert text.count("<input type=range") == 1
    assert "only of 1 scored (subject" in text  # not best, median and worst
    assert "81.61" not in text  # this task publishes nothing
    assert (run.path / "figures" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (run.path / "evaluation-test.csv").read_text().startswith("case,accuracy\n")


def test_the_page_says_what_its_scores_are_worth(run):
    text = report(run).read_text()
    assert "<meta name=viewport content='width=device-width" in text
    notes = text.partition("<div class=notes>")[2].partition("</div>")[0]
    assert re.findall("<p>(.*?)</p>", notes) == [
        "The network is hardly trained: it stopped in epoch 2 of the recipe&#x27;s 300.",
        "Only 1 patient is scored: fewer than 10 say little about others.",
        "For research only. Not a medical device; not for use on patients.",
    ]
    versions = f"cmrfast {cmrfast.__version__}, torch {torch.__version__}, Python "
    assert text.count(versions) == 2  # of the training and of the report
    assert "Validation score 0." in text  # a single one is no curve


def test_published_rows_and_scores_are_named_in_words(run):
    record = methods.get("joint_registration")
    scores = {"rv_cd_mm": 2.0, "cine_dice_percent": 80.0}
    rows = [Row({"case": "<a>", "cine_slice": k}, scores) for k in range(2)]
    evaluation = Evaluation("joint_registration", "test", rows, {"rv_cd_mm_p": 0.5}, record)
    text = render(run, evaluation, [], b"", {})
    for part in (
        "<span title='rv_cd_mm'>RV centre distance (mm)</span>",
        "<span title='cine_dice_percent'>cine Dice (%)</span>",
        "<th>registration alone (stn), 25 patients</th>",
        "Published, before registration: the test patients before registration.",
        "<p>1 patient, 2 pairs of slices</p>",
        "<tr><td>&lt;a&gt;</td><td>2</td><td>2.00</td><td>80.0</td></tr>",
    ):
        assert part in text
    assert text.count("<div class=scroll><table") == 2


@pytest.mark.parametrize(
    ("values", "titles"),
    [
        ([], []),
        ([0.5], ["only of 1 scored (c0, scar_dice 0.5)"]),
        ([0.5, 0.75], ["best of 2 scored (c1, scar_dice 0.75)", "worst of 2 scored (c0,"]),
        ([0.1, 0.3, 0.2], ["best of 3 scored (c1,", "median of 3 scored (c2,", "worst of 3"]),
        ([0.5, None], ["only of 1 scored (c0, scar_dice 0.5)"]),
    ],
)
def test_few_cases_are_not_called_median(values, titles):
    """None: neither mask has a scar, which is not the best case."""
    rows = [
        Row(
            {"case": f"c{n}", "slice": 0},
            {"scar_dice": 1.0 if value is None else value},
            {"scar": "neither" if value is None else "both"},
        )
        for n, value in enumerate(values)
    ]
    record = methods.get("joint_scar")
    chosen = _choose_cases(record.objective, Evaluation("joint_scar", "test", rows, {}, record))
    assert len(chosen) == len(titles)
    assert all(title.startswith(words) for title, words in zip(chosen, titles, strict=True))


def test_curves_show_the_loss_above_its_parts(monkeypatch):
    from matplotlib.axes import Axes

    drawn, plot = [], Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda *a, **k: (drawn.append(k.get("label")), plot(*a, **k))[1]
    )
    log = [{"step": n, "loss": n, "whole": n, "half": n / 2, "lr": 1.0} for n in (1, 2)]
    draw_curves(log)
    assert drawn == ["half", "loss"]
    drawn.clear()
    draw_curves([*log, {"step": 2, "validation": 0.5}])
    assert drawn == ["half", "loss"]
    draw_curves([*log, {"step": 1, "validation": 0.4}, {"step": 2, "validation": 0.5}])
    assert drawn == ["half", "loss", "half", "loss", None]
    assert draw_curves([]).startswith(b"\x89PNG")


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

"""Studies: end to end at a tiny size, resuming, and the tables and tests of the results page."""

import dataclasses
import importlib
import json
import math
import sys

import pytest
import torch

from cmrfast.data import Volume
from cmrfast.methods import Row
from cmrfast.models import MODELS
from cmrfast.runs.evaluate import Evaluation
from studies import design, page
from studies.outcome import Outcome
from tests.support.paths import ROOT


def tiny(cases, shrink, *, steps=2, **changes):
    return design.Scale(cases, shrink=shrink, changes=changes, steps=steps, seeds=1)


TINY = {
    "siamese_lesion": tiny(4, 3, patch=32, spacing_mm=3.0, channels=(4, 4, 4, 4), hidden=8),
    "joint_scar": tiny(
        3,
        3,
        **{"image": 32, "root": 32, "units": (1, 1, 1), "width": 8, "depth": 1, "batch": 4},
        **{"heads": 2, "hidden": 16, "decoder": (16, 8, 8, 8, 8)},
    ),
    "joint_registration": tiny(3, 3, steps=None, widths=(4, 8), side=64, spacing_mm=2.6, epochs=1),
    "new_lesions": tiny(4, 4, spacing_mm=4.0, patch=16, overlap=4, batch=4, per_patient=4),
    "adversarial_transfer": tiny(4, 4, width=4, size=32, view_px=32, copies=0, pretrain_epochs=0),
}


def test_every_study_runs_at_a_tiny_size():
    studies = {path.stem for path in (ROOT / "studies").glob("*.py")} & set(MODELS)
    assert studies == set(TINY)


def outcome(evaluations, scores=("dice",), tests=()):
    told = design.Study(
        "new_lesions",
        {name: design.Arm({}) for name in evaluations},
        scores,
        ("case",),
        tests,
        design.Scale(3),
        design.Scale(3),
    )
    return Outcome(told, "small", "phantoms", None, {}, evaluations)


def evaluated(*dice):
    rows = [Row({"case": str(n)}, {"dice": value}) for n, value in enumerate(dice)]
    return Evaluation("new_lesions", "test", rows, {})


@pytest.mark.slow
@pytest.mark.parametrize("method", TINY)
def test_a_study_goes_from_nothing_to_its_page_and_again(method, tmp_path, monkeypatch, capsys):
    script = importlib.import_module(f"studies.{method}")
    monkeypatch.setattr(script, "STUDY", dataclasses.replace(script.STUDY, small=TINY[method]))
    monkeypatch.delenv("CMRFAST_TEST_DATA", raising=False)
    words = ["--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", [method, *words, "--workers", "1"])
    script.main()
    assert f"{len(script.STUDY.arms)} trainings, 0 of them done" in capsys.readouterr().out
    content = json.loads((tmp_path / "results" / f"{method}-small.json").read_text())
    assert content["minutes"] > 0
    assert set(script.STUDY.arms) <= set(content["arms"])
    assert all(any(arm["scores"].values()) for arm in content["arms"].values())
    for ending in ("", "-cases"):
        assert (tmp_path / "results" / f"{method}-small{ending}.png").stat().st_size > 10_000
    marks = [mark.format(f"{method}-small") for mark in (page.BEGIN, page.END)]
    (tmp_path / "README.md").write_text("\n".join(["before", *marks, "after"]))
    page.update(tmp_path / "README.md", tmp_path / "results")
    assert "| variant |" in (tmp_path / "README.md").read_text()
    script.main()
    said = capsys.readouterr().out
    assert f"{len(script.STUDY.arms)} of them done before" in said
    again = json.loads((tmp_path / "results" / f"{method}-small.json").read_text())
    assert again["arms"] == content["arms"]
    assert again["minutes"] is None


def test_scores_are_means_of_each_seed():
    found = outcome({"a": [evaluated(0.2, 0.4, math.nan), evaluated(0.5, 0.5, 0.5)]})
    assert found.by_seed("a") == {"dice": [pytest.approx(0.3), 0.5]}


def test_units_are_averaged_over_seeds_and_paired_by_name():
    a = [evaluated(0.2, 0.4, math.nan), evaluated(0.4, 0.6, 0.9)]
    b = [evaluated(0.1, 0.5, math.nan)]
    found = outcome({"a": a, "b": b}, tests=(("a", "b"),))
    assert found.by_unit("a", "dice") == {("0",): pytest.approx(0.3), ("1",): 0.5, ("2",): 0.9}
    (test,) = found.tests()
    assert (test["units"], test["difference"]) == (2, pytest.approx(0.1))


def test_table_sets_published_figures_beside_ours():
    arms = {
        "a": {"scores": {"f1": [0.5, 0.7]}, "published": {"f1": "0.61"}},
        "b": {"scores": {"f1": [None, 0.5]}, "published": {}},
    }
    text = page.table({"scores": ["f1"], "arms": arms})
    assert text.splitlines() == [
        "| variant | f1 | published |",
        "| --- | ---: | ---: |",
        "| a | 0.600 ± 0.141 | 0.61 |",
        "| b | 0.500 | - |",
    ]


@pytest.mark.parametrize(
    ("values", "text"),
    [([81.61, 79.0], "80.3 ± 1.8"), ([0.05], "0.0500"), ([], "-"), ([0.0], "0.00"), ([250], "250")],
)
def test_mean_has_three_digits(values, text):
    assert page.mean_sd(values) == text


def test_page_without_marks_says_so(tmp_path):
    (tmp_path / "some.json").write_text("{}")
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(SystemExit, match="has no <!-- some: begin -->"):
        page.update(tmp_path / "README.md", tmp_path)


def test_pictures_show_what_is_labelled_or_the_middle():
    pytest.importorskip("matplotlib")
    from studies import figures

    mask = Volume(torch.zeros(1, 200, 160, 9, dtype=torch.uint8), torch.eye(4, dtype=torch.float64))
    assert figures._crop_box(mask, mask) == ([100, 80, 4], 160)
    mask.data[0, 20:40, 30:35, 7] = 1
    mask.data[0, 60, 60, 2] = 2  # the highest label
    mask.data[0, 50, 60, 2] = 1
    assert figures._crop_box(mask, mask) == ([55, 60, 2], 70)

"""Search: better values are found, studies go on, failures are one trial's own."""

import json

import pytest

from cmrfast.models import MODELS
from cmrfast.train.run import changed
from cmrfast.train.search import RANGES, Range, search
from tests.support import training_task

optuna = pytest.importorskip("optuna")

FEW = {"lr": Range(1e-6, 1e-2, log=True)}


@pytest.fixture(autouse=True)
def made_up_cohort(monkeypatch):
    training_task.install(monkeypatch.setattr)


def run_search(out, **options):
    changes = {**training_task.SMALL, **training_task.QUIET}
    options = {"trials": 3, "ranges": FEW, "steps": 4, **options}
    return search("siamese_lesion", "nowhere", out, changes=changes, device="cpu", **options)


def test_a_search_ends_resumes_and_is_drawn(tmp_path):
    first = run_search(tmp_path)
    assert first["trials"] == 3
    assert 1e-6 <= first["best"]["lr"] <= 1e-2
    assert json.loads((tmp_path / "best.json").read_text()) == first
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (tmp_path / "trials").iterdir()) == ["0000", "0001", "0002"]
    assert run_search(tmp_path)["trials"] == 3  # there is nothing left to do
    more = run_search(tmp_path, trials=4)
    assert more["trials"] == 4
    assert more["score"] >= first["score"]


def test_another_storage_is_shared(tmp_path):
    url = f"sqlite:///{tmp_path}/shared.db"
    run_search(tmp_path / "one", trials=2, storage=url)
    assert run_search(tmp_path / "two", trials=3, storage=url)["trials"] == 3
    assert len(list((tmp_path / "two" / "trials").iterdir())) == 1


def test_a_trial_that_diverges_counts_as_the_worst(tmp_path):
    found = run_search(tmp_path, ranges={"lr": Range(1e-6, 1e30, log=True)}, trials=6)
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/search.db")
    diverged = [t for t in study.trials if "diverged" in t.user_attrs]
    assert 0 < len(diverged) < 6
    assert "first not finite" in diverged[0].user_attrs["diverged"]
    assert found["score"] > max(t.value for t in diverged)
    assert found["best"]["lr"] < 1e14


def test_unknown_fields_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got 'speed'"):
        run_search(tmp_path, ranges={"speed": Range(0, 1)})


@pytest.mark.parametrize("method", MODELS)
def test_every_method_has_ranges_of_fields_that_exist(method):
    changed(method, {name: (r.low + r.high) / 2 for name, r in RANGES[method].items()})

"""Search: better values are found, studies are resumed, failures are one trial's own."""

import json
import math
import warnings

import pytest

from cmrfast import methods
from cmrfast.methods import LogUniform, Uniform
from cmrfast.models import MODELS
from cmrfast.train.run import Run
from cmrfast.train.search import search
from tests.support import training_task

optuna = pytest.importorskip("optuna")

FEW = {"lr": LogUniform(1e-6, 1e-2)}


@pytest.fixture(autouse=True)
def made_up_cohort(monkeypatch):
    training_task.install(monkeypatch.setattr)


def run_search(out, *, fixed=None, **options):
    changes = {**training_task.SMALL, **training_task.QUIET, **(fixed or {})}
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


@pytest.mark.parametrize(
    ("keep", "scores", "expected"),
    [
        ("last", [0.9, 0.2], 0.2),
        ("best", [0.9, 0.2], 0.9),
        ("best", [math.nan, 0.9, math.nan], 0.9),
    ],
)
def test_a_trial_has_the_score_of_the_weights_that_it_keeps(
    keep, scores, expected, tmp_path, monkeypatch
):
    def train(*told, watch, **options):
        for step, score in enumerate(scores):
            watch(step, score)

    monkeypatch.setattr("cmrfast.train.search.train", train)
    assert run_search(tmp_path, trials=1, fixed={"keep": keep})["score"] == expected


def test_without_a_score_of_the_weights_that_it_keeps_a_search_ends(tmp_path, monkeypatch):
    def train(*told, watch, **options):
        watch(0, 0.9)
        watch(1, math.nan)

    monkeypatch.setattr("cmrfast.train.search.train", train)
    with pytest.raises(ValueError, match="the validation patients have nothing to score"):
        run_search(tmp_path, trials=1)


def test_a_search_may_continue_with_other_fields(tmp_path):
    run_search(tmp_path, trials=1, steps=1)
    others = {"temperature": Uniform(0.05, 0.2)}
    assert run_search(tmp_path, ranges=others, trials=2, steps=1)["trials"] == 2
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")


def test_another_storage_is_shared(tmp_path):
    url = f"sqlite:///{tmp_path}/shared.db"
    run_search(tmp_path / "one", trials=2, storage=url)
    assert run_search(tmp_path / "two", trials=3, storage=url)["trials"] == 3
    assert len(list((tmp_path / "two" / "trials").iterdir())) == 1


def test_a_trial_that_diverges_counts_as_the_worst(tmp_path):
    found = run_search(tmp_path, ranges={"lr": LogUniform(1e-6, 1e30)}, trials=6)
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/search.db")
    diverged = [t for t in study.trials if "diverged" in t.user_attrs]
    assert 0 < len(diverged) < 6
    assert "first not finite" in diverged[0].user_attrs["diverged"]
    assert {t.value for t in diverged} == {-math.inf}
    assert found["best"]["lr"] < 1e14


def test_a_first_trial_that_diverges_is_not_better_than_any(tmp_path):
    with pytest.raises(ValueError, match="all of 2 trials diverged; lower the ranges"):
        run_search(tmp_path, ranges={"lr": LogUniform(1e29, 1e30)}, trials=2)
    found = run_search(tmp_path, trials=4)
    assert 1e-6 <= found["best"]["lr"] <= 1e-2


def test_warnings_of_the_process_stay_as_they_were(tmp_path):
    before = list(warnings.filters)
    run_search(tmp_path, trials=1)
    assert warnings.filters == before


def drawn(out):
    """Parameters of the trials, by number."""
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{out}/search.db")
    return [trial.params for trial in study.trials]


def test_a_restart_goes_on_with_other_draws(tmp_path):
    run_search(tmp_path / "whole", trials=4, steps=1)
    for trials in (1, 2, 3, 4):
        run_search(tmp_path / "parts", trials=trials, steps=1)
    whole, parts = drawn(tmp_path / "whole"), drawn(tmp_path / "parts")
    assert len({trial["lr"] for trial in parts}) == 4
    assert parts == whole
    run_search(tmp_path / "other", trials=1, steps=1, seed=1)
    assert drawn(tmp_path / "other") != whole[:1]


def test_workers_that_begin_together_draw_other_values(tmp_path):
    """The other worker has begun the first trial, and has no result yet."""
    for name in ("alone", "both"):
        (tmp_path / name).mkdir()
    other = optuna.create_study(
        study_name="siamese_lesion",
        storage=f"sqlite:///{tmp_path}/both/search.db",
        direction="maximize",
    )
    other.ask()
    run_search(tmp_path / "both", trials=1, steps=1)
    run_search(tmp_path / "alone", trials=1, steps=1)
    assert drawn(tmp_path / "both")[1]["lr"] != drawn(tmp_path / "alone")[0]["lr"]


def test_a_field_that_is_given_is_not_searched(tmp_path):
    found = run_search(tmp_path, ranges=None, fixed={"lr": 1e-3}, trials=1, steps=1)
    assert {*found["best"]} == {"temperature"}  # QUIET gives the dropout
    assert Run.open(tmp_path / "trials" / "0000").recipe.lr == 1e-3


def test_a_range_of_a_field_that_is_given_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a range or a value, not both; got both of lr"):
        run_search(tmp_path / "out", fixed={"lr": 1e-3})
    with pytest.raises(ValueError, match=r"lr, temperature, dropout_full are all given"):
        run_search(tmp_path / "out", ranges=None, fixed={"lr": 1e-3, "temperature": 0.1})
    assert not (tmp_path / "out").exists()


def test_unknown_fields_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got 'speed'"):
        run_search(tmp_path, ranges={"speed": Uniform(0, 1)})


@pytest.mark.parametrize("method", MODELS)
def test_every_method_has_ranges_of_fields_that_exist(method):
    record = methods.get(method)
    assert record.search
    record.configure({name: (r.low + r.high) / 2 for name, r in record.search.items()})

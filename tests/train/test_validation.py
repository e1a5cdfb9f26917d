"""Validation in training: defective patients, missing and late scores, the best of a run."""

import json
from dataclasses import replace
from typing import ClassVar

import pytest

from cmrfast import FileError
from cmrfast.data.datasets import Split
from cmrfast.errors import NotFiniteError
from cmrfast.methods import Row
from cmrfast.train import Run
from cmrfast.train.log import read_log
from tests.support import training_task
from tests.support.training_task import run_training, same, weights

pytestmark = pytest.mark.usefixtures("made_up_cohort")


def scores_of(run):
    """Step → score of every checkpoint of a run."""
    return {
        int(path.name[5:]): json.loads((path / "state.json").read_text())["score"]
        for path in run.checkpoints.folder.iterdir()
    }


class FaultyTask(training_task.RandomTask):
    """Some validation patients have files that cannot be used."""

    unscorable: ClassVar[set[str]] = set()  # found before the first step
    fails: ClassVar[dict[str, Exception]] = {}  # while validating

    def require_scorable(self, case):
        if case.name in self.unscorable:
            raise FileError(f"image: {case.name}.nii holds 1 NaN")

    def evaluate(self, model, case):
        if error := self.fails.get(case.name):
            raise error
        assert case.name not in self.unscorable
        return super().evaluate(model, case)


@pytest.fixture
def faulty(monkeypatch):
    """A task whose validation patients have the faults that a test gives it."""
    monkeypatch.setattr(FaultyTask, "unscorable", set())
    monkeypatch.setattr(FaultyTask, "fails", {})
    training_task.install(monkeypatch.setattr, replace(training_task.METHOD, task=FaultyTask))
    return FaultyTask


TWO_VALIDATE = Split(("subject1", "subject2"), ("subject3", "subject4"), ("subject5",))


def validations(run):
    lines = read_log(run.path / "log.jsonl")
    return {line["step"]: line["validation"] for line in lines if "validation" in line}


@pytest.mark.parametrize("when", ["before the first step", "while validating"])
def test_a_defective_validation_patient_is_left_out(tmp_path, caplog, faulty, when):
    if when == "while validating":
        faulty.fails = {"subject3": FileError("image: subject3.nii holds 1 NaN")}
    else:
        faulty.unscorable = {"subject3"}
    run = run_training(tmp_path / "run", split=TWO_VALIDATE, changes={"keep": "best"})
    line = "train: subject3 is left out of validation: image: subject3.nii holds 1 NaN"
    assert caplog.text.count(line) == (3 if when == "while validating" else 1)
    assert [step for step, score in validations(run).items() if score is not None] == [2, 4, 6]
    assert run.checkpoints.load_newest(None).step == 6
    assert all(score is not None for score in scores_of(run).values())


def test_without_any_patient_to_validate_on_the_score_is_missing(tmp_path, faulty):
    faulty.unscorable = {"subject3", "subject4"}
    run = run_training(tmp_path / "run", split=TWO_VALIDATE, changes={"keep": "best"})
    assert validations(run) == {2: None, 4: None, 6: None}
    assert run.checkpoint().step == 6


def test_a_network_that_overflows_for_a_patient_has_no_score(tmp_path, caplog, faulty):
    faulty.fails = {"subject4": NotFiniteError("transunet: images must be finite")}
    run = run_training(tmp_path / "run", split=TWO_VALIDATE)
    assert "train: step 6 has no score: subject4: transunet: images must be finite" in caplog.text
    assert scores_of(run)[6] is None


def test_a_validation_that_fails_loses_no_work_and_is_made_up_for(tmp_path, faulty):
    options = {"split": TWO_VALIDATE, "steps": 4, "changes": {"keep": "best"}}
    faulty.fails = {"subject3": MemoryError()}
    with pytest.raises(MemoryError):
        run_training(tmp_path / "run", **options)
    assert scores_of(Run.open(tmp_path / "run")) == {2: None}
    faulty.fails = {}
    run = run_training(tmp_path / "run", resume=True, **options)
    whole = run_training(tmp_path / "whole", **options)
    assert scores_of(run) == scores_of(whole)
    assert validations(run) == validations(whole)
    same(weights(run), weights(whole))


class ErraticTask(training_task.RandomTask):
    """The score goes up and down, but is a function of the weights."""

    def evaluate(self, model, case):
        total = sum(p.detach().double().abs().sum().item() for p in model.parameters())
        return [Row({"case": case.name}, {"accuracy": 1e4 * total % 1})]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("first", "then"), [(1, 2), (5, 6), (7, 9)])
def test_an_extended_run_keeps_the_best_of_an_uninterrupted_one(
    tmp_path, monkeypatch, seed, first, then
):
    # An epoch is 2 steps. A last step within an epoch is scored, but only if the run ends there.
    training_task.install(monkeypatch.setattr, replace(training_task.METHOD, task=ErraticTask))
    options = {"changes": {"keep": "best"}, "seed": seed}
    short = run_training(tmp_path / "parts", steps=first, **options)
    assert scores_of(short)[first] is not None
    parts = run_training(tmp_path / "parts", steps=then, resume=True, **options)
    whole = run_training(tmp_path / "whole", steps=then, **options)
    assert parts.checkpoint().step == whole.checkpoint().step
    assert parts.checkpoint().score == whole.checkpoint().score
    same(dict(parts.model().state_dict()), dict(whole.model().state_dict()))

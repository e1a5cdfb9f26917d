"""What bits depend on: the threads and images that a run began with stay, all else is named."""

import json
import sys
from dataclasses import asdict, replace

import pytest
import torch

from cmrfast import CheckpointError, FileError
from cmrfast.data.datasets.case import Case
from cmrfast.train import Run, train
from cmrfast.train.conditions import Conditions, threads
from cmrfast.train.plan import TrainOptions
from cmrfast.train.ranks import Ranks
from tests.support import training_task
from tests.support.training_task import SMALL, RandomTask

HERE = Conditions.here(TrainOptions(), Ranks())


class WatchedTask(RandomTask):
    """Notes the number of threads at each batch."""

    seen: list[int] = []  # noqa: RUF012

    def feed(self, cases, *, seed):
        feed = super().feed(cases, seed=seed)
        own = feed.batch

        def batch(epoch, samples):
            self.seen.append(torch.get_num_threads())
            return own(epoch, samples)

        feed.batch = batch
        return feed


@pytest.fixture(autouse=True)
def cohort(monkeypatch):
    WatchedTask.seen.clear()
    method = replace(training_task.METHOD, task=WatchedTask)
    training_task.install(monkeypatch.setattr, method)


def run_training(out, steps, **options):
    changes = {**SMALL, **options.pop("changes", {})}
    options = {"device": "cpu", "changes": changes, "steps": steps, **options}
    return train("siamese_lesion", "nowhere", out, **options)


def test_a_resumed_run_keeps_the_threads_it_began_under(tmp_path):
    # Products that torch divides among threads: with one, 26 of 30 tensors end in other bits.
    wide = {"channels": (4, 4, 4, 64), "hidden": 2048, "batch": 20}
    with threads(2):
        whole = run_training(tmp_path / "whole", 4, changes=wide)
        run_training(tmp_path / "parts", 2, changes=wide)
    WatchedTask.seen.clear()
    with threads(1):
        parts = run_training(tmp_path / "parts", 4, changes=wide, resume=True)
        assert torch.get_num_threads() == 1  # left as it was
    assert set(WatchedTask.seen) == {2}
    assert parts.conditions.threads == 2
    for name, tensor in whole.checkpoint().state["model"].items():
        assert torch.equal(tensor, parts.checkpoint().state["model"][name]), name


def test_other_conditions_are_named_and_do_not_stop(tmp_path, capsys):
    run = run_training(tmp_path / "run", 2)
    run.conditions = replace(run.conditions, torch="1.0", cpu="z80")
    run.save()
    run_training(tmp_path / "run", 3, resume=True, stream=sys.stderr)
    said = capsys.readouterr().err
    assert f"torch 1.0, now {torch.__version__}" in said
    assert "cpu z80, now " in said
    assert Run.open(tmp_path / "run").conditions.torch == "1.0"  # it began there


def test_conditions_read_back_and_are_checked(tmp_path):
    stored = json.loads(json.dumps(asdict(HERE)))
    assert Conditions.from_json(stored) == HERE
    assert HERE.differences(HERE) == []
    for name, value, problem in (
        ("threads", "2", "threads must be a whole number; it is text"),
        ("threads", 0, "threads must be 1 to 4096; it is 0"),
        ("sharded", None, "sharded must be true or false; it is null"),
        ("torch", 2, "torch must be text"),
    ):
        with pytest.raises(ValueError, match=problem):
            Conditions.from_json({**stored, name: value})


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A cohort whose patients have files."""
    made = []
    for case in training_task.cases():
        file = tmp_path / f"{case.name}.img"
        file.write_bytes(case.name.encode())
        made.append(Case(case.name, {"lge": file}, {}, {}))
    monkeypatch.setattr(training_task, "cases", lambda: tuple(made))
    return {case.name: case.images["lge"] for case in made}


def test_changed_images_are_refused_by_name(tmp_path, images):
    run = run_training(tmp_path / "run", 2)
    split = run.plan.split
    assert set(run.inputs) == {*split.train, *split.validate}
    images[split.test[0]].write_bytes(b"other")  # no part in training
    run_training(tmp_path / "run", 3, resume=True)
    images[split.train[0]].write_bytes(b"other")
    images[split.validate[0]].unlink()
    with pytest.raises(FileError) as refused:
        run_training(tmp_path / "run", 4, resume=True)
    assert str(refused.value).startswith("train: files have changed since the run began")
    assert f"{split.train[0]} image lge" in str(refused.value)
    assert f"{split.validate[0]} image lge" in str(refused.value)
    assert split.train[1] not in str(refused.value)


def test_a_missing_patient_is_an_error_of_files(tmp_path, monkeypatch):
    run = run_training(tmp_path / "run", 2)
    left = [case for case in training_task.cases() if case.name != run.plan.split.train[0]]
    monkeypatch.setattr(training_task, "cases", lambda: tuple(left))
    with pytest.raises(FileError, match=f"not there: {run.plan.split.train[0]}"):
        run_training(tmp_path / "run", 3, resume=True)


def edited(path, **entries):
    """Change the description of a run by hand."""
    content = json.loads((path / "run.json").read_text())
    for name, value in entries.items():
        *inner, last = name.split("__")
        place = content
        for key in inner:
            place = place[key]
        place[last] = value
    (path / "run.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("entry", "value", "problem"),
    [
        ("plan", [], "plan must be an object; it is a list"),
        ("plan__method", "vnet", "method must be one of siamese_lesion, .*; got 'vnet'"),
        ("plan__steps", "7", "steps must be a whole number; it is text"),
        ("plan__steps", -1, "must be at least 1"),
        ("plan__split", {}, "train is missing"),
        ("plan__split__train", [1], "train must be a list of text"),
        ("plan__layout", "none", "layout must be one of"),
        ("plan__precision", "int8", "precision must be one of"),
        ("plan__config__hidden", "many", "hidden must be a whole number; got 'many'"),
        ("plan__config__hidden", True, "hidden must be a whole number; got True"),
        ("plan__config__channels", [4, 4], "channels must be 4 whole numbers"),
        ("plan__config__shared_layers", ["a"], "shared_layers must be whole numbers"),
        ("plan__config__norm", 3, "norm must be one of lrn, batch"),
        ("plan__config__depth", 3, "got 'depth'"),
        ("plan__recipe__lr", "fast", "lr must be a number"),
        ("plan__recipe__lr", -1.0, "lr must be positive"),
        ("data", 3, "data must be text"),
        ("fitted", None, "fitted must be an object"),
        ("inputs", {"subject1": 3}, "subject1 must map files to hashes"),
        ("conditions", {"threads": 2}, "ranks is missing"),
    ],
)
def test_a_description_is_read_by_type(tmp_path, entry, value, problem):
    run = run_training(tmp_path / "run", 1)
    edited(run.path, **{entry: value})
    with pytest.raises(CheckpointError, match=rf"open_run: .*run\.json is damaged: .*{problem}"):
        Run.open(run.path)


def test_a_run_of_an_older_version_opens(tmp_path):
    run = run_training(tmp_path / "run", 1)
    content = json.loads((run.path / "run.json").read_text())
    del content["inputs"], content["conditions"]
    (run.path / "run.json").write_text(json.dumps(content))
    opened = Run.open(run.path)
    assert (opened.inputs, opened.conditions) == ({}, None)
    run_training(tmp_path / "run", 2, resume=True)
    assert Run.open(run.path).conditions == HERE

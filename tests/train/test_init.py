"""Training that starts from the weights of another run, or of a file."""

import pytest
import torch
from safetensors.torch import save_file

from cmrfast import CheckpointError, FileError
from cmrfast.data import datasets
from cmrfast.data.datasets import Split
from cmrfast.runs.evaluate import evaluate
from cmrfast.runs.verify import verify
from cmrfast.train import Run, train
from cmrfast.train.checkpoint import CheckpointFolder
from tests.support import training_task
from tests.support.training_task import SMALL


@pytest.fixture(autouse=True)
def made_up_cohort(monkeypatch, tmp_path):
    training_task.install(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)


def run_training(out, *, steps=1, changes=None, **options):
    changes = {**SMALL, **(changes or {})}
    return train("siamese_lesion", "d", out, steps=steps, changes=changes, device="cpu", **options)


def weights_of(run):
    return dict(run.model().state_dict())


def without_learning(out, **options):
    """A run whose weights stay what it starts from, but for the averages of batch norm."""
    run = run_training(out, changes={"lr": 1e-30}, **options)
    return {name: x for name, x in weights_of(run).items() if "running" not in name and x.dim()}


def test_it_starts_from_a_run():
    source = run_training("source", seed=1, steps=3)
    started = without_learning("tuned", init="source")
    for name, tensor in started.items():
        torch.testing.assert_close(tensor, weights_of(source)[name], rtol=0, atol=1e-20)
    tuned = Run.open("tuned")
    assert tuned.plan.init == str(source.path.resolve())
    assert tuned.inputs["init"] == {"weights": source.checkpoint().digest}
    assert verify(tuned).same
    assert "init" not in Run.open("source").plan.as_json()


def test_it_starts_from_a_file():
    source = run_training("source", seed=1)
    tensors = weights_of(source)
    save_file(tensors, "weights.safetensors")
    half_precision = {n: x.bfloat16() if x.is_floating_point() else x for n, x in tensors.items()}
    save_file(half_precision, "half.safetensors")
    for file, wanted in (("weights", tensors), ("half", half_precision)):
        started = without_learning(file, init=f"{file}.safetensors")
        for name, tensor in started.items():
            torch.testing.assert_close(tensor, wanted[name].float(), rtol=0, atol=1e-20)


def test_it_resumes_with_the_same_weights_only():
    run_training("source", seed=1)
    run_training("other", seed=2)
    whole = run_training("whole", steps=3, init="source")
    run_training("tuned", steps=2, init="source")
    resumed = train("siamese_lesion", None, "tuned", steps=3, resume=True, device="cpu")
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, weights_of(resumed)[name]), name
    with pytest.raises(FileError, match=r"files have changed .*: init weights"):
        train("siamese_lesion", None, "tuned", steps=4, resume=True, init="other", device="cpu")
    run_training("source", seed=1, steps=2, resume=True)
    with pytest.raises(FileError, match=r"files have changed .*: init weights"):
        train("siamese_lesion", None, "tuned", steps=4, resume=True, device="cpu")


def test_names_and_shapes_must_be_those_of_the_network():
    source = run_training("source")
    with pytest.raises(
        CheckpointError,
        match=r"train: the weights of source do not fit the network; of another shape: \S+ is "
        r"\(8, \d+\), must be \(16, \d+\), .* and \d+ more$",
    ):
        run_training("a", init="source", changes={"hidden": 16})
    tensors = weights_of(source)
    first, *others = tensors
    save_file({"more": torch.ones(1), **{n: tensors[n] for n in others}}, "odd.safetensors")
    message = f"odd.safetensors do not fit the network; missing: {first}; unknown: more"
    with pytest.raises(CheckpointError, match=message):
        run_training("a", init="odd.safetensors")
    save_file({**tensors, first: tensors[first] * torch.inf}, "inf.safetensors")
    with pytest.raises(CheckpointError, match=r"weights of inf.safetensors hold NaN or infinite"):
        run_training("a", init="inf.safetensors")
    assert not CheckpointFolder("a").folder.exists()


def test_what_holds_no_weights_is_named(tmp_path):
    what = "train: init must be the folder of a run or a safetensors file; "
    with pytest.raises(FileError, match=f"{what}gone: No such file or directory"):
        run_training("a", init="gone")
    (tmp_path / "text").write_text("text")
    with pytest.raises(FileError, match=f"{what}text: "):
        run_training("a", init="text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=r"folder holds no run\.json; is it a run\?"):
        run_training("a", init="folder")


def test_scores_of_patients_who_trained_the_weights_are_noted(monkeypatch):
    layout = training_task.Layout(images=True)
    monkeypatch.setitem(datasets.LAYOUTS, "t1_lge", layout)
    run_training("source")
    split = Run.open("source").plan.split
    own = Split(split.test, split.validate, split.train)
    tuned = run_training("tuned", init="source", split=own)
    (note,) = [n for n in evaluate(tuned).notes if "started from" in n]
    assert note.startswith("4 of the scored patients (subject")
    assert evaluate(run_training("same", init="source")).notes == evaluate(Run.open("source")).notes
    save_file(weights_of(tuned), "weights.safetensors")
    notes = evaluate(run_training("file", init="weights.safetensors")).notes
    assert any("whom it was trained on is not known here" in note for note in notes)

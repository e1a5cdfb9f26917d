"""Verification: the bits of a run are computed again, and what differs is named."""

import json
import os
import subprocess
import sys

import pytest
import torch

from cmrfast import CheckpointError
from cmrfast.data.phantom import write_phantoms
from cmrfast.runs import verify
from cmrfast.train import Run, train
from cmrfast.train.proof import tensor_digest

NETWORK = {"channels": (4, 4, 4, 4), "hidden": 8, "features": 8, "patch": 32, "batch": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_phantoms("t1_lge", tmp_path_factory.mktemp("data"), cases=5, shrink=3)


@pytest.fixture
def run(tmp_path, data):
    options = {"changes": NETWORK, "steps": 3, "device": "cpu"}
    return train("siamese_lesion", data, tmp_path / "run", **options)


def changed(run, part, name):
    """Change a stored hash, as if the run had computed something else."""
    file = run.path / "proof.json"
    parts = json.loads(file.read_text())
    parts[part][name] = "0" * 40
    file.write_text(json.dumps(parts))


def test_the_same_machine_has_the_same_bits(run):
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        verification = verify(Run.open(run.path))
    finally:
        torch.set_num_threads(threads)
    assert verification.same
    assert verification.conditions == ()
    (patient,) = (part for part in verification.parts if part.startswith("a prediction of "))
    assert str(verification).splitlines() == [
        "files: the same",
        "the first batch: same bits",
        "the first weights: same bits",
        "the weights after one step: same bits",
        f"{patient}: same bits",
    ]
    assert patient.rpartition(" ")[2] in run.plan.split.train
    assert before == {path: path.read_bytes() for path in before}  # nothing is written


def test_a_resumed_run_verifies(tmp_path, data, run):
    train("siamese_lesion", data, run.path, changes=NETWORK, steps=5, device="cpu", resume=True)
    assert verify(Run.open(run.path)).same


@pytest.mark.parametrize(
    ("part", "name"),
    [("the first batch", "lge"), ("the weights after one step", "t1.conv1.0.weight")],
)
def test_what_differs_first_is_named(run, part, name):
    changed(run, part, name)
    verification = verify(Run.open(run.path))
    assert not verification.same
    assert f"{part}: different bits, first in {name}" in str(verification)


def test_changed_weights_show_in_the_prediction(run, monkeypatch):
    model = run.model()
    monkeypatch.setattr(Run, "model", lambda self, **_: model)
    with torch.no_grad():
        model.t1.conv1[0].weight.mul_(-3)
        for parameter in model.parameters():
            parameter.add_(0.5)
    verification = verify(Run.open(run.path))
    (differing,) = (part for part, names in verification.parts.items() if names)
    assert differing.startswith("a prediction of ")


def test_runs_without_hashes_are_refused(run):
    (run.path / "proof.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"proof\.json is damaged: it must hold a JSON obj"):
        verify(Run.open(run.path))
    (run.path / "proof.json").write_text('{"the first batch": {"t1": 3}}')
    with pytest.raises(CheckpointError, match="the first batch must map names to hashes"):
        verify(Run.open(run.path))
    (run.path / "proof.json").unlink()
    with pytest.raises(CheckpointError, match="has nothing to compare with: it did not finish"):
        verify(Run.open(run.path))


def test_another_number_of_ranks_is_refused(run):
    content = json.loads((run.path / "run.json").read_text())
    content["conditions"]["ranks"] = 4
    (run.path / "run.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="was trained by 4 ranks; got 1"):
        verify(Run.open(run.path))


@pytest.mark.slow
def test_ranks_verify_a_run_of_as_many(tmp_path, data):
    options = [
        f"--{name}={','.join(map(str, v)) if isinstance(v, tuple) else v}"
        for name, v in NETWORK.items()
    ]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for command in (
        [
            "train",
            "siamese_lesion",
            "--data",
            data,
            "--out",
            tmp_path / "run",
            "--steps=2",
            *options,
        ],
        ["verify", tmp_path / "run"],
    ):
        done = subprocess.run(
            [*launch, "-m", "cmrfast", *map(str, command), "--device=cpu"],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("the weights after one step: same bits") == 1


def test_hashes_tell_values_shapes_and_dtypes_apart():
    one = torch.arange(6.0)
    digests = {
        tensor_digest(tensor)
        for tensor in (one, one.view(2, 3), one.int(), one.bfloat16(), one.bool(), one[0])
    }
    assert len(digests) == 6
    assert tensor_digest(one.view(2, 3).t()) == tensor_digest(one.view(2, 3).t().contiguous())
    assert tensor_digest(torch.empty(0)) != tensor_digest(torch.empty(0, 3))

"""A disk that fills: the error names the file, nothing half-written stays, and it goes on later.

A limit on the size of files stands for the full disk: every write beyond it fails.
"""

import resource
from contextlib import contextmanager

import pytest
import torch

from cmrfast import CheckpointError, FileError
from cmrfast.train import train
from tests.support import training_task
from tests.support.training_task import SMALL


@pytest.fixture(autouse=True)
def made_up_cohort(monkeypatch):
    training_task.install(monkeypatch.setattr)


@contextmanager
def full_beyond(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_training(out, steps):
    options = {"device": "cpu", "changes": SMALL, "steps": steps, "resume": True}
    return train("siamese_lesion", "nowhere", out, save_every_s=0.0, **options)


@pytest.mark.parametrize("began", [0, 2])
@pytest.mark.parametrize("size", [0, 100, 500, 1500, 4000, 8000, 20_000, 60_000])
def test_a_run_on_a_full_disk_fails_in_words_and_goes_on_later(tmp_path, began, size):
    out = tmp_path / "run"
    if began:
        run_training(out, began)
    before = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    with full_beyond(size), pytest.raises((FileError, CheckpointError), match="too large"):
        run_training(out, 4)
    left = [path.name for path in tmp_path.rglob("*")]
    assert not [name for name in left if ".making" in name or ".tmp" in name or name == "lock"]
    assert before == {path: path.read_bytes() for path in before}
    resumed, whole = run_training(out, 4), run_training(tmp_path / "whole", 4)
    for name, tensor in whole.checkpoint().state["model"].items():
        assert torch.equal(tensor, resumed.checkpoint().state["model"][name]), name

"""Checkpoints: what goes in comes out to the bit, and nothing half-written is ever taken."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from cmrfast import CheckpointError
from cmrfast.data import tensor_files
from cmrfast.train import checkpoint as module
from cmrfast.train.checkpoint import (
    Checkpoint,
    CheckpointFolder,
    load_checkpoint,
)

MADE_FOR = {"method": "unet", "config": {"channels": 32, "widths": (1, 2)}}


def trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3)).square().sum().backward()
    optimiser.step()
    return model, optimiser


def checkpoint(step, score=None, value=1.0):
    return Checkpoint(step, MADE_FOR, {"model": {"w": torch.full((3,), value)}}, score)


def same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert a == b


def test_a_state_comes_back_to_the_bit(tmp_path):
    model, optimiser = trained()
    state = {
        "model": dict(model.state_dict()),
        "optimiser": optimiser.state_dict(),
        "random": torch.get_rng_state(),
        "epoch": 3,
        "loss": 0.1,
        "name": None,
    }
    folder = CheckpointFolder(tmp_path)
    folder.save(Checkpoint(7, MADE_FOR, state, score=0.5))
    loaded = folder.load_newest(MADE_FOR)
    same(loaded.state, state)
    assert (loaded.step, loaded.score) == (7, 0.5)
    expected = torch.rand(3)
    torch.set_rng_state(loaded.state["random"])
    assert torch.equal(torch.rand(3), expected)
    optimiser.load_state_dict(loaded.state["optimiser"])


def test_shared_weights_are_saved(tmp_path):
    shared = torch.ones(2)
    CheckpointFolder(tmp_path).save(Checkpoint(1, {}, {"a": shared, "b": shared}))
    loaded = CheckpointFolder(tmp_path).load_newest({})
    assert torch.equal(loaded.state["a"], loaded.state["b"])


def test_two_newest_and_the_best_stay(tmp_path):
    folder = CheckpointFolder(tmp_path)
    assert folder.load_newest(MADE_FOR) is None
    assert folder.best() is None
    for step, score in ((1, 0.1), (2, 0.9), (3, 0.3), (4, None), (5, 0.2)):
        folder.save(checkpoint(step, score))
    assert sorted(p.name for p in folder.folder.iterdir()) == [
        *("step-000002", "step-000004", "step-000005")
    ]
    assert folder.best().name == "step-000002"
    assert folder.load_newest(MADE_FOR).step == 5


def test_a_score_comes_later(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for step, score in ((1, 0.1), (2, 0.9), (3, 0.3), (4, 0.2)):
        folder.save(checkpoint(step, score))
    folder.save(checkpoint(5))
    folder.rescore(5, 1.0, trim=False)
    assert folder.best().name == "step-000005"
    assert sorted(int(p.name[5:]) for p in folder.folder.iterdir()) == [2, 4, 5]
    folder.forget_scores(lambda step: step == 5)
    assert folder.load_newest(MADE_FOR).score is None
    assert folder.best().name == "step-000002"
    folder.rescore(5, 1.0)
    assert folder.load_newest(MADE_FOR).score == 1.0
    assert sorted(int(p.name[5:]) for p in folder.folder.iterdir()) == [4, 5]
    with pytest.raises(CheckpointError, match=r"^save_checkpoint: .*step-000006.*state\.json: "):
        folder.rescore(6, 1.0)


def test_a_damaged_one_keeps_its_score(tmp_path, caplog):
    folder = CheckpointFolder(tmp_path)
    path = folder.save(checkpoint(1, 0.5)) / "state.json"
    path.write_text(path.read_text().replace("0.5", "0.6"))
    folder.forget_scores(lambda step: True)
    assert "description is not the one it was saved with" in caplog.text
    assert "0.6" in path.read_text()


STRAYS = {
    "an empty folder": lambda path: path.mkdir(),
    "a file": lambda path: path.touch(),
    "a list": lambda path: (path.mkdir(), (path / "state.json").write_text("[]")),
    "null": lambda path: (path.mkdir(), (path / "state.json").write_text("null")),
    "a word for a score": lambda path: (
        path.mkdir(),
        (path / "state.json").write_text('{"score": "high"}'),
    ),
    "deep": lambda path: (path.mkdir(), (path / "state.json").write_text("[" * 100_000)),
    "a pipe": lambda path: (path.mkdir(), os.mkfifo(path / "state.json")),
    "a device": lambda path: (path.mkdir(), (path / "state.json").symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("stray", STRAYS.values(), ids=STRAYS)
@pytest.mark.parametrize("name", ["step-000000", "step-999999", "step-000001.making-me"])
def test_strays_do_not_end_a_run_nor_count(tmp_path, name, stray):
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint(1))
    stray(folder.folder / name)
    for step in (2, 3, 4):
        folder.save(checkpoint(step))
    left = {path.name for path in folder.folder.iterdir()}
    assert left == {name, "step-000003", "step-000004"}
    assert folder.load_newest(MADE_FOR).step == 4
    assert folder.best().name == "step-000004"


def test_what_cannot_be_removed_does_not_end_a_run(tmp_path, monkeypatch, caplog):
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2):
        folder.save(checkpoint(step))

    def refuse(path):
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(module, "_remove", refuse)
    folder.save(checkpoint(3))
    assert "step-000001 could not be removed: not yours" in caplog.text
    assert folder.load_newest(MADE_FOR).step == 3


@pytest.mark.parametrize("place", ["step", "score", "made_for", "state", "tensors_bytes"])
def test_any_change_of_its_description_is_noticed(tmp_path, place):
    path = CheckpointFolder(tmp_path).save(checkpoint(1, score=0.5)) / "state.json"
    content = json.loads(path.read_text())
    content[place] = 2
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="its description is not the one it was saved with"):
        load_checkpoint(path.parent)


def test_one_of_an_older_version_is_refused_by_name(tmp_path):
    path = CheckpointFolder(tmp_path).save(checkpoint(1)) / "state.json"
    content = json.loads(path.read_text())
    del content["blake2b"]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="cannot be used: it is of an older version"):
        load_checkpoint(path.parent)


def test_endless_tensors_are_refused_at_once(tmp_path):
    path = CheckpointFolder(tmp_path).save(checkpoint(1)) / "tensors.safetensors"
    os.truncate(path, 1 << 40)
    with pytest.raises(CheckpointError, match="its tensors are not those it was saved with"):
        load_checkpoint(path.parent)


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "short", "changed"])
def test_a_damaged_one_gives_way_to_the_one_before(tmp_path, file, damage):
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint(1))
    path = folder.save(checkpoint(2)) / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-9] if damage == "short" else content[:-9] + b"?" * 9)
    assert folder.load_newest(MADE_FOR).step == 1
    with pytest.raises(CheckpointError, match="step-000002"):
        load_checkpoint(path.parent)


def test_none_whole_is_an_error(tmp_path):
    folder = CheckpointFolder(tmp_path)
    (folder.save(checkpoint(1)) / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"step-000001: state\.json is missing"):
        folder.load_newest(MADE_FOR)


def test_another_model_is_refused_by_its_differences(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint(1))
    other = {"method": "vnet", "config": {"channels": 32, "widths": (1, 2)}}
    with pytest.raises(
        CheckpointError, match="was written for method='unet', this model is method='vnet'"
    ):
        folder.load_newest(other)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_the_old_one(tmp_path, monkeypatch, error):
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint(1))

    def full(tensors, path):
        path.write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(tensor_files, "save_file", full)
        with pytest.raises(
            CheckpointError, match=r"could not be written: .*No space left on device"
        ):
            folder.save(checkpoint(2))
    assert [p.name for p in folder.folder.iterdir()] == ["step-000001"]
    assert folder.load_newest(MADE_FOR).step == 1


def test_states_are_plain(tmp_path):
    with pytest.raises(TypeError, match="holds tensors and plain values"):
        CheckpointFolder(tmp_path).save(Checkpoint(1, {}, {"model": object()}))
    with pytest.raises(ValueError, match="keep must be >= 1"):
        CheckpointFolder(tmp_path, keep=0)


WRITER = """
import itertools, sys, torch
from cmrfast.train.checkpoint import Checkpoint, CheckpointFolder
folder = CheckpointFolder(sys.argv[1])
for step in itertools.count(1):
    folder.save(Checkpoint(step, {}, {"w": torch.full((200000,), float(step))}))
    print(step, flush=True)
"""


def test_killed_at_any_moment_the_last_saved_is_there(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        time.sleep(0.2 * torch.rand((), generator=generator).item())
        process.send_signal(signal.SIGKILL)
        saved = 1 + len(process.communicate()[0].split())
        loaded = CheckpointFolder(tmp_path).load_newest({})
        assert loaded.step >= saved
        assert (loaded.state["w"] == loaded.step).all()
        for path in (tmp_path / "checkpoints").iterdir():
            if path.suffix == "":
                assert json.loads((path / "state.json").read_text())["step"] == int(path.name[5:])
    CheckpointFolder(tmp_path).save(Checkpoint(10**6, {}, {}))
    assert not list((tmp_path / "checkpoints").glob("*.making-*"))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_files_have_the_mode_of_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        CheckpointFolder(tmp_path).save(checkpoint(1))
    finally:
        os.umask(before)
    files = list(tmp_path.rglob("*.*"))
    assert len(files) == 2
    assert {file.stat().st_mode & 0o777 for file in files} == {mode}

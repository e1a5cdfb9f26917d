"""Attack on runs: damaged checkpoints, descriptions, proofs, logs and evaluations.

What holds: anything but CheckpointError and FileError is a fault; a checkpoint that loads is one
that was saved, to the bit; a run whose older parts are damaged goes on and saves.
"""

import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch

from cmrfast import CheckpointError, FileError
from cmrfast.runs.evaluate import Evaluation, evaluate
from cmrfast.train import Run, train
from cmrfast.train.checkpoint import Checkpoint, load_checkpoint
from cmrfast.train.log import read_log
from cmrfast.train.proof import Proof
from tests.attack.frame import Attack
from tests.attack.mutate import damage_bytes, damage_json, replace_by_oddity
from tests.support import training_task
from tests.support.training_task import SMALL


@cache
def _whole() -> tuple[Path, dict[int, Checkpoint]]:
    """A run with two checkpoints, and what they hold."""
    training_task.install(setattr)
    folder = Path(tempfile.mkdtemp(prefix="attack-whole-")) / "run"
    for steps in (1, 2):
        options = {"steps": steps, "changes": SMALL, "device": "cpu", "resume": True}
        run = train("siamese_lesion", "nowhere", folder, **options)
    evaluate(run).save(folder)
    checkpoints = [load_checkpoint(path) for path in run.checkpoints.folder.iterdir()]
    return folder, {checkpoint.step: checkpoint for checkpoint in checkpoints}


def _attack(numbers: random.Random, folder: Path) -> str:
    source, saved = _whole()
    shutil.copytree(source, folder / "run")
    for _ in range(numbers.choice((1, 1, 1, 2, 3))):
        _damage(numbers, folder / "run")
    outcomes = set()
    for check in (_open, _load, _read_others, _go_on):
        if check is _go_on and numbers.random() > 0.05:
            continue  # a training takes longer than all the rest
        try:
            outcomes.add(check(folder / "run", saved))
        except (CheckpointError, FileError):
            outcomes.add("refused")
    return "refused" if "refused" in outcomes else "harmless"


def _damage(numbers: random.Random, run: Path) -> None:
    files = [
        path
        for path in sorted(run.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 30
    ]
    if not files:
        return
    file = numbers.choice(files)
    kind = numbers.random()
    if kind < 0.1:
        stray = numbers.choice(("step-000000", "step-999999", "step-000002.making-x", "step--1"))
        (run / "checkpoints" / stray).mkdir(exist_ok=True)
    elif kind < 0.25:
        replace_by_oddity(
            numbers, numbers.choice((file, file.parent)) if numbers.random() < 0.2 else file
        )
    elif kind < 0.6 and file.suffix == ".json":
        try:
            content = json.loads(file.read_text())
        except (ValueError, RecursionError):
            return
        file.write_text(json.dumps(damage_json(numbers, content)))
    else:
        file.write_bytes(damage_bytes(numbers, file.read_bytes()))


def _open(path: Path, _: dict[int, Checkpoint]) -> str:
    run = Run.open(path)
    run.model()
    run.task()
    return "opened"


def _load(path: Path, saved: dict[int, Checkpoint]) -> str:
    for folder in (path / "checkpoints").glob("step-*"):
        try:
            loaded = load_checkpoint(folder)
        except CheckpointError:
            continue
        _assert_same(loaded, saved[loaded.step])
    return "loaded"


def _read_others(path: Path, _: dict[int, Checkpoint]) -> str:
    Proof.load(path)
    assert all(isinstance(line["step"], int) for line in read_log(path / "log.jsonl"))
    Evaluation.load(path, "test")
    return "read"


def _go_on(path: Path, _: dict[int, Checkpoint]) -> str:
    options = {"steps": 3, "changes": SMALL, "device": "cpu", "resume": True}
    run = train("siamese_lesion", "nowhere", path, **options)
    assert run.checkpoint().step == 3
    return "went on"


def _assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert (one.made_for, one.score, one.digest) == (other.made_for, other.score, other.digest)
    _assert_same_tree(one.state, other.state)


def _assert_same_tree(one: object, other: object) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        _assert_same_tree(list(one.values()), list(other.values()))
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            _assert_same_tree(a, b)
    else:
        assert one == other


ATTACK = Attack("checkpoints", _attack, prepare=_whole)

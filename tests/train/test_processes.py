"""Training that is killed or runs on several processes: the same bits, or a named cause."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from cmrfast.train import Run
from cmrfast.train.log import read_log
from tests.support.paths import ROOT
from tests.support.training_task import QUIET, SMALL, run_training, same, weights

pytestmark = pytest.mark.usefixtures("made_up_cohort")


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from tests.support import training_task
training_task.install(setattr)
from cmrfast.train import train
train("siamese_lesion", "nowhere", {out!r}, resume=True, device="cpu", **{options!r})
"""


def start(out, *launcher, **options):
    options = {"changes": SMALL, "save_every_s": 0.0, **options}
    script = out.with_suffix(".py")
    script.write_text(SCRIPT.format(root=str(ROOT), out=str(out), options=options))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(script)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def logged(out):
    return [line for line in read_log(out / "log.jsonl") if "loss" in line]


def wait_for_steps(process, out, steps):
    end = time.monotonic() + 60
    while len(logged(out)) < steps and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)


def kill_and_resume(tmp_path, times, steps):
    """Kill at random moments; in the end the bits are those of a run that nobody killed."""
    chance = random.Random(0)
    out = tmp_path / "run"
    for _ in range(times):
        before = len(logged(out))
        if before >= steps:
            break
        process = start(out, steps=steps)
        wait_for_steps(process, out, before + 1)
        time.sleep(chance.uniform(0, 0.15))
        process.kill()
        process.wait()
        if process.returncode == -signal.SIGKILL and (out / "checkpoints").exists():
            found = Run.open(out).checkpoints.load_newest(None)
            # A checkpoint is made after every step: no more than the step under way is lost.
            assert (found.step if found else 0) >= len(logged(out)) - 1
    last = start(out, steps=steps)
    _, errors = last.communicate(timeout=120)
    assert last.returncode == 0, errors
    assert [line["step"] for line in logged(out)] == list(range(1, steps + 1))
    torch.set_num_threads(1)
    whole = run_training(tmp_path / "whole", steps=steps)
    same(weights(whole), weights(Run.open(out)))


def test_killed_twice_it_resumes_to_the_bit(tmp_path):
    kill_and_resume(tmp_path, times=2, steps=30)


@pytest.mark.slow
def test_killed_twenty_times_it_resumes_to_the_bit(tmp_path):
    kill_and_resume(tmp_path, times=20, steps=400)


def test_sigterm_saves_and_exits_143(tmp_path):
    out = tmp_path / "run"
    process = start(out, steps=100_000, save_every_s=1e9)
    wait_for_steps(process, out, 5)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert Run.open(out).checkpoint().step == len(logged(out))


def torchrun(out, ranks, *flags, **options):
    flags = flags or ("--standalone",)
    run = ("-m", "torch.distributed.run", *flags, f"--nproc-per-node={ranks}")
    return start(out, *run, **options)


def finished(process):
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors


@pytest.mark.parametrize("norm", ["lrn", "batch"])
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_ranks_trains_as_one(tmp_path, ranks, norm):
    options = {"steps": 4, "changes": {**SMALL, **QUIET, "batch": 7, "lr": 1e-3, "norm": norm}}
    finished(torchrun(tmp_path / "many", ranks, **options))  # 4 and 3 samples
    run_training(tmp_path / "one", **options)
    one, many = (logged(tmp_path / name) for name in ("one", "many"))
    for a, b in zip(one, many, strict=True):
        for part in ("loss", "classification", "pairing"):
            assert a[part] == pytest.approx(b[part], rel=1e-4)
    before = run_training(tmp_path / "before", **{**options, "steps": 1})
    for name, tensor in weights(Run.open(tmp_path / "one")).items():
        torch.testing.assert_close(
            weights(Run.open(tmp_path / "many"))[name], tensor, rtol=1e-3, atol=2e-5
        )
    bias = "t1.fc6.0.bias"
    assert not torch.equal(weights(before)[bias], weights(Run.open(tmp_path / "one"))[bias])


@pytest.mark.slow
def test_sharded_weights_train_and_resume_as_one(tmp_path):
    options = {"changes": {**SMALL, **QUIET, "batch": 8, "lr": 1e-3}}
    finished(torchrun(tmp_path / "many", 2, steps=2, sharded=True, **options))
    finished(torchrun(tmp_path / "many", 2, steps=4, sharded=True, **options))
    run_training(tmp_path / "one", steps=4, **options)
    one, many = (logged(tmp_path / name) for name in ("one", "many"))
    assert [line["loss"] for line in one] == pytest.approx(
        [line["loss"] for line in many], rel=1e-4
    )
    assert Run.open(tmp_path / "many").model()(torch.zeros(2, 1, 32, 32))["logits"].isfinite().all()


def test_a_rank_that_fails_stops_the_others_with_its_cause(tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setenv("BROKEN_RANK", "1")
    process = torchrun(out, 2, steps=50)
    _, errors = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "stopped because of rank 1 of 2: the disk is gone" in errors


@pytest.mark.parametrize("norm", ["lrn", "batch"])
def test_a_loss_that_is_not_finite_on_one_rank_stops_all_with_its_cause(
    tmp_path, monkeypatch, norm
):
    monkeypatch.setenv("BROKEN_RANK", "1")
    monkeypatch.setenv("BROKEN_HOW", "overflows")
    changes = {**SMALL, "norm": norm, "variant": "pure"}
    process = torchrun(tmp_path / "run", 2, steps=50, timeout_s=30, changes=changes)
    _, errors = process.communicate(timeout=100)
    assert process.returncode != 0
    named = r"train: the loss of step 1 is nan; first not finite is the loss; every module's output"
    # One of the two may report the error of the other.
    assert len(re.findall(rf"Error: (stopped because of rank \d of 2: )?{named}", errors)) >= 2


@pytest.mark.slow
def test_two_nodes_of_two_processes_train_as_one(tmp_path):
    options = {"steps": 4, "changes": {**SMALL, **QUIET, "batch": 8, "lr": 1e-3}}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = ("--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}")
    nodes = [torchrun(tmp_path / "many", 2, *flags, **options) for _ in range(2)]
    for node in nodes:
        finished(node)
    run_training(tmp_path / "one", **options)
    one, many = (logged(tmp_path / name) for name in ("one", "many"))
    assert [line["loss"] for line in one] == pytest.approx(
        [line["loss"] for line in many], rel=1e-4
    )


@pytest.mark.slow
def test_a_rank_that_hangs_stops_the_others_within_the_timeout(tmp_path, monkeypatch):
    monkeypatch.setenv("BROKEN_RANK", "1")
    monkeypatch.setenv("BROKEN_HOW", "hangs")
    process = torchrun(tmp_path / "run", 2, steps=50, timeout_s=5)
    _, errors = process.communicate(timeout=100)
    assert process.returncode != 0
    assert f"stopped because of rank 1 of 2 on {socket.gethostname()}, which did not come" in errors

"""Training: resumes to the bit, is one whatever the parts and ranks, and ends cleanly."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from cmrfast import CheckpointError, FileError
from cmrfast.data.datasets import Split
from cmrfast.errors import NotFiniteError
from cmrfast.methods import Row
from cmrfast.train import Run, train
from cmrfast.train.log import read_log
from cmrfast.train.ranks import is_first_rank
from tests.support import training_task
from tests.support.paths import ROOT
from tests.support.training_task import QUIET, SMALL


@pytest.fixture(autouse=True)
def made_up_cohort(monkeypatch):
    training_task.install(monkeypatch.setattr)


def weights(run):
    return run.checkpoints.load_newest(None).state["model"]


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def run_training(out, **options):
    changes = {**SMALL, **options.pop("changes", {})}
    return train(
        "siamese_lesion",
        "nowhere",
        out,
        **{"steps": 6, "changes": changes, "device": "cpu", **options},
    )


def test_the_folder_of_a_run_reads_back(tmp_path):
    made = run_training(tmp_path / "run", seed=3)
    opened = Run.open(tmp_path / "run")
    assert opened.plan == made.plan
    assert opened.config == made.config
    assert opened.config.channels == (4, 4, 4, 4)
    assert opened.recipe.batch == 8
    assert opened.fitted == {"patients": len(opened.plan.split.train)}
    assert not opened.model().training
    same(dict(opened.model().state_dict()), weights(made))
    lines = read_log(tmp_path / "run" / "log.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert "validation" in lines[-1]
    step = lines[0]
    assert step["loss"] == pytest.approx(step["classification"] + step["pairing"], rel=1e-5)
    assert step["lr"] == opened.recipe.lr


def test_training_learns(tmp_path):
    run = run_training(tmp_path / "run", steps=60, changes={"lr": 3e-3, "dropout_full": 0.0})
    losses = [line["loss"] for line in read_log(run.path / "log.jsonl") if "loss" in line]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_the_seed_decides_everything(tmp_path):
    one, other, third = (run_training(tmp_path / str(n), seed=min(n, 1)) for n in range(3))
    same(weights(other), weights(third))
    assert not torch.equal(weights(one)["t1.conv1.0.weight"], weights(other)["t1.conv1.0.weight"])


def test_a_resumed_run_ends_in_the_same_bits(tmp_path):
    whole = run_training(tmp_path / "whole", steps=7)
    run_training(tmp_path / "parts", steps=3)
    parts = run_training(tmp_path / "parts", steps=7, resume=True)
    same(weights(whole), weights(parts))
    one, other = (read_log(run.path / "log.jsonl") for run in (whole, parts))
    strip = ("samples_per_s", "waited_share")
    kept = [
        [{k: v for k, v in line.items() if k not in strip} for line in lines if "loss" in line]
        for lines in (one, other)
    ]
    assert kept[0] == kept[1]


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


def test_resume_starts_where_there_is_nothing(tmp_path):
    same(
        weights(run_training(tmp_path / "one", resume=True)),
        weights(run_training(tmp_path / "two")),
    )


def test_a_run_is_not_overwritten_and_not_confused(tmp_path):
    run_training(tmp_path / "run", steps=2)
    with pytest.raises(CheckpointError, match=r"train: .*run holds a run already; resume"):
        run_training(tmp_path / "run", steps=2)
    with pytest.raises(
        CheckpointError, match=r"written for recipe\.lr=0\.0001, this .* is recipe\.lr=0\.5$"
    ):
        run_training(tmp_path / "run", steps=4, resume=True, changes={"lr": 0.5})
    assert Run.open(tmp_path / "run").recipe.lr == 1e-4  # a refusal changes nothing
    with pytest.raises(CheckpointError, match=r"holds no run\.json"):
        Run.open(tmp_path)
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        Run.open(tmp_path / "run")
    with pytest.raises(ValueError, match=r"fields are .*lr.*; got 'speed'"):
        run_training(tmp_path / "other", changes={"speed": 1})


def test_a_split_of_ones_own_is_kept(tmp_path):
    names = Run.open(run_training(tmp_path / "dealt", steps=1).path).plan.split
    own = Split(names.validate, names.train[:1], names.test)
    run_training(tmp_path / "run", steps=1, split=own)
    assert Run.open(tmp_path / "run").plan.split == own
    run_training(tmp_path / "run", steps=2, resume=True)
    assert Run.open(tmp_path / "run").plan.split == own
    with pytest.raises(CheckpointError, match=r"run was begun with another split of the patients"):
        run_training(tmp_path / "run", steps=3, split=names, resume=True)
    with pytest.raises(FileError, match=r"train: nowhere lacks patients of the split: nobody"):
        run_training(tmp_path / "other", split=Split(("nobody",), own.validate, own.test))


def test_other_labels_are_refused_on_resuming(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "cmrfast.train.trainer.open_cases", lambda *args, **options: made_up_cases()
    )
    monkeypatch.setattr("cmrfast.train.plan.open_cases", lambda *args, **options: made_up_cases())
    labels = {"lesion": (3, 4)}
    run_training(tmp_path / "run", steps=1, labels=labels)
    run_training(tmp_path / "run", steps=2, labels={"lesion": (4, 3)}, resume=True)
    assert run_training(tmp_path / "run", steps=3, resume=True).plan.labels == labels
    named = r"run was begun with labels lesion=3,4; it cannot resume with labels lesion=3$"
    with pytest.raises(CheckpointError, match=named):
        run_training(tmp_path / "run", steps=4, labels={"lesion": (3,)}, resume=True)
    run_training(tmp_path / "plain", steps=1)
    with pytest.raises(CheckpointError, match=r"begun with the data set's own labels; it cannot"):
        run_training(tmp_path / "plain", steps=2, labels=labels, resume=True)


def made_up_cases():
    return training_task.Layout().open("nowhere")


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    run = run_training(tmp_path / "run", steps=3)
    with pytest.raises(
        CheckpointError, match=r"run has done 3 steps, so steps must be at least 3; got 2$"
    ):
        run_training(tmp_path / "run", steps=2, resume=True)
    assert Run.open(run.path).plan.steps == 3
    assert run_training(tmp_path / "run", steps=3, resume=True).plan.steps == 3


def test_epochs_replace_the_steps_of_a_run_without_a_checkpoint(tmp_path):
    run = run_training(tmp_path / "run", steps=3)
    shutil.rmtree(run.checkpoints.folder)
    resumed = train("siamese_lesion", None, tmp_path / "run", resume=True, epochs=1)
    assert resumed.plan.steps == 2
    assert resumed.recipe.epochs == 1
    assert resumed.checkpoint().step == 2


def test_a_run_resumes_with_its_own_options_and_fields(tmp_path):
    options = {"seed": 3, "micro_batch": 4, "precision": "bfloat16", "channels_last": True}
    begun = run_training(tmp_path / "run", steps=2, **options)
    resumed = train("siamese_lesion", None, tmp_path / "run", resume=True, steps=3)
    assert resumed.plan == replace(begun.plan, steps=3)
    assert resumed.conditions.channels_last
    whole = run_training(tmp_path / "whole", steps=3, **options)
    same(weights(resumed), weights(whole))
    with pytest.raises(CheckpointError, match=r"run of siamese_lesion; it cannot resume as new_l"):
        train("new_lesions", "nowhere", tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match=r"^train: data is needed, .*; .*other holds no run$"):
        train("siamese_lesion", None, tmp_path / "other", resume=True)


@pytest.mark.parametrize("device", ["gpu", "cud", "cuda:", "mps", "cuda:x"])
def test_an_unknown_device_is_refused(tmp_path, device):
    with pytest.raises(ValueError, match=r"^device: must be auto, cpu, cuda or cuda:N; got") as e:
        run_training(tmp_path / "run", device=device)
    assert str(e.value).endswith("; did you mean cuda?") == (device != "mps")


@pytest.mark.parametrize("name", ["steps", "epochs", "micro_batch"])
def test_a_count_below_one_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=rf"^train: {name} must be at least 1; got 0$"):
        run_training(tmp_path / "run", **{name: 0})


def test_an_unknown_option_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"^train: options are split, .*; got 'speed'$"):
        run_training(tmp_path / "run", speed=1)


@pytest.mark.parametrize(("size", "rank", "first"), [("1", "1", True), ("2", "1", False)])
def test_a_leftover_rank_does_not_count_alone(monkeypatch, size, rank, first):
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("RANK", rank)
    assert is_first_rank() is first


def test_a_step_of_its_own_takes_its_batch_whole(tmp_path, monkeypatch):
    method = replace(training_task.METHOD, step=lambda *args, **options: {})
    training_task.install(monkeypatch.setattr, method)
    with pytest.raises(ValueError, match="takes its batch of 8 whole; got micro_batch 3"):
        run_training(tmp_path / "parts", micro_batch=3)


@pytest.mark.parametrize("separable", [False, True])
def test_parts_of_a_batch_add_up(tmp_path, monkeypatch, separable):
    # Without the pairing loss, whose every sample depends on all, the loss is a mean of samples.
    quiet = {**QUIET, "variant": "pure" if separable else "siamese"}
    whole = run_training(tmp_path / "whole", changes=quiet, micro_batch=8)
    method = replace(training_task.METHOD, mean_loss=lambda config: separable)
    training_task.install(monkeypatch.setattr, method)
    parts = run_training(tmp_path / "parts", changes=quiet, micro_batch=3)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], tensor, rtol=1e-4, atol=1e-6)


def test_dropout_is_the_same_in_both_passes(tmp_path):
    # In one piece and in two passes of one piece: the same gradients, so the same weights.
    from cmrfast.train.network import TrainingNetwork
    from cmrfast.train.ranks import Ranks
    from cmrfast.train.update import Update

    method = training_task.METHOD
    changes = {k: v for k, v in SMALL.items() if k != "batch"}
    found = []
    for two_passes in (False, True):
        torch.manual_seed(0)
        model = method.model(method.config(**changes)).train()
        network = TrainingNetwork(model, model, method.inputs, torch.device("cpu"))
        update = Update(method, model.config, method.recipe(batch=8), network, Ranks())
        batch = training_task.RandomFeed(0).batch(0, torch.arange(8))
        torch.manual_seed(1)
        if two_passes:
            update.backward._recompute([batch], batch)
        else:
            update.backward(batch)
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    named = r"step 2 is (nan|-?inf); first not finite is the module t1\.\w+\.\d; the last"
    with pytest.raises(FloatingPointError, match=named):
        run_training(tmp_path / "run", save_every_s=0.0, changes={"lr": 1e30})
    stored = Run.open(tmp_path / "run").checkpoint()
    assert stored.step == 1
    assert all(t.isfinite().all() for t in stored.state["model"].values())


def test_the_first_module_that_is_not_finite_is_named():
    from cmrfast.train.guard import first_not_finite

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2))

    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model

        def forward(self, x):
            return {"out": self.body(x)}

    named = Named()
    huge = {"x": torch.full((1, 2), 1e38)}
    with torch.no_grad():
        model[0].weight.fill_(1e4)
    assert first_not_finite(named, huge) == "the module body.0"
    with torch.no_grad():
        model[2].bias[0] = torch.nan
    assert first_not_finite(named, {"x": torch.ones(1, 2)}) == "the parameter body.2.bias"
    assert first_not_finite(named, {"x": torch.full((1, 2), torch.nan)}) == "the input x"


def test_a_network_behind_one_that_fails_does_not_hide_its_name():
    from cmrfast.models import build
    from cmrfast.train.guard import first_not_finite

    narrow = {"image": 32, "root": 32, "units": (1, 1, 1), "width": 8, "depth": 1, "heads": 2}
    model = build("joint_scar", **narrow, hidden=16, decoder=(16, 8, 8, 8, 8))
    torch.nn.init.constant_(model.myocardium.decoder.head.weight, 1e38)
    images = {"images": torch.rand(2, 1, 32, 32)}
    with pytest.raises(ValueError, match="transunet: images must be finite"):
        model(**images)
    assert first_not_finite(model, images) == "the module myocardium.decoder.head"


def test_bfloat16_and_compiled(tmp_path):
    run = run_training(tmp_path / "run", steps=2, precision="bfloat16")
    assert run.plan.precision == "bfloat16"
    assert weights(run)["t1.conv1.0.weight"].dtype == torch.float32


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

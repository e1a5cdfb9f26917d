"""Training: resumes to the bit, is one whatever the parts, and refuses what it cannot do."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from cmrfast import CheckpointError, FileError
from cmrfast.data.datasets import Split
from cmrfast.train import Run, train
from cmrfast.train.log import read_log
from cmrfast.train.ranks import is_first_rank
from tests.support import training_task
from tests.support.training_task import QUIET, SMALL, run_training, same, weights

pytestmark = pytest.mark.usefixtures("made_up_cohort")


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
    again = train("siamese_lesion", None, tmp_path / "run", resume=True, epochs=1)
    assert again.plan == resumed.plan
    message = r"run was begun with 1 epochs; steps \(--steps\) sets how far it continues$"
    with pytest.raises(CheckpointError, match=message):
        train("siamese_lesion", None, tmp_path / "run", resume=True, epochs=2)


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


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("save_every_s", -1.0, "at least 0; got -1.0"),
        ("save_every_s", float("nan"), "at least 0; got nan"),
        ("timeout_s", 0.0, "positive; got 0.0"),
        ("compiled", "graph", "one of no, default, graphs; got 'graph'; did you mean graphs?"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_refused(tmp_path, name, value, message):
    with pytest.raises(ValueError, match=rf"^train: {name} must be {re.escape(message)}$"):
        run_training(tmp_path / "run", **{name: value})


def test_one_process_cannot_shard(tmp_path):
    with pytest.raises(ValueError, match=r"^train: sharded .* which torchrun starts; there is one"):
        run_training(tmp_path / "run", sharded=True)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_thread_can_train(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_training, tmp_path / "run", steps=1).result()
    assert run.checkpoint().step == 1


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


def test_outputs_of_a_graph_are_kept_from_the_next_replay():
    from cmrfast.train.micro_batch import Backward
    from cmrfast.train.network import TrainingNetwork
    from cmrfast.train.ranks import Ranks

    model, memory = torch.nn.Linear(1, 1), torch.zeros(2, 1)

    def replay(x):
        if torch.is_grad_enabled():
            return {"y": model(x)}
        return {"y": memory.copy_(model(x))}

    def squared_mean(outputs, batch):
        return {"loss": outputs["y"].mean() ** 2}

    batch = {"x": torch.arange(4.0)[:, None]}
    found = []
    for size in (None, 2):
        network = TrainingNetwork(
            model, replay if size else lambda x: {"y": model(x)}, ("x",), memory.device,
            compiled="graphs",
        )  # fmt: skip
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        backward = Backward(network, squared_mean, Ranks(), scaler, mean_loss=False, size=size)
        model.zero_grad()
        backward(batch)
        found.append(model.weight.grad.clone())
    torch.testing.assert_close(*found)


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

"""Whole jobs: a training step with its data, and what a network says of one case's images.

Patients are phantoms. The peer is the same network with the same weights in plain layers, fed by
MONAI; before timing both have to lose the same over two steps on one batch, dropout off.
"""

import copy
import itertools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plain
from benchmarks.pipelines import pipeline
from benchmarks.workloads.case import Case
from cmrfast import methods
from cmrfast.data.datasets import open_dataset
from cmrfast.data.phantom import write_phantoms
from cmrfast.infer import sliding_window
from cmrfast.methods import AnyMethod, AnyTask, Feed
from cmrfast.models import MODELS
from cmrfast.models.new_lesions import fold
from cmrfast.train.network import Network
from cmrfast.train.ranks import Ranks
from cmrfast.train.update import Update


@dataclass(frozen=True)
class Job:
    """A method at the papers' image size.

    Args:
        name: of the method.
        batch: samples of a step; smaller than the paper's where two CPU cores ask for it.
        shrink: of the phantoms; the grid that the network sees is as much coarser.
        config, recipe: changes.
    """

    name: str
    batch: int
    shrink: float = 1.0
    config: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> AnyMethod:
        """The method's record."""
        return methods.get(self.name)

    def task(self) -> tuple[AnyTask, Feed]:
        """The method's task and its feed."""
        method = self.method
        config, recipe = method.configure({**self.config, **self.recipe})
        layout = method.datasets[0]
        with tempfile.TemporaryDirectory() as folder:
            write_phantoms(layout, folder, cases=2, shrink=self.shrink)
            cases = list(open_dataset(layout, folder))
            fitted = method.task(config, recipe).fit(cases)
            task = method.task(config, recipe, fitted)
            return task, task.feed(cases, seed=0)


#: The loss that both ways of a step have to give, to a share of it, after one update.
_TOLERANCE = 1e-3


def step_of(job: Job) -> Case:
    """One step, its batch drawn for it."""
    task, feed = job.task()
    model = MODELS[job.name](task.config).train()
    other = plain.network(model)
    ours, theirs = _steps(job, task, model, other)
    numbers, begin = itertools.count(), _first_epoch(task)

    def drawn() -> dict[str, Tensor]:
        first = next(numbers) * job.batch
        samples = (first + torch.arange(job.batch)) % len(feed)
        batch: dict[str, Tensor] = feed.batch(begin + first // len(feed), samples)
        return batch

    peer_drawn = pipeline(job.name, feed, task.config, task.recipe, job.batch)

    def proof() -> None:
        batch, peer_batch = drawn(), peer_drawn()
        shapes = ({k: tuple(x.shape) for k, x in b.items()} for b in (batch, peer_batch))
        assert next(shapes) == next(shapes)
        twin = _without_dropout(copy.deepcopy(model))
        steps = _steps(job, task, twin, plain.network(twin))
        for _ in range(2):  # the second loss tells of the gradients of the first
            found = [step(batch) for step in steps]
            for key in found[1]:
                torch.testing.assert_close(found[0][key], found[1][key], rtol=_TOLERANCE, atol=1e-5)

    with FlopCounterMode(display=False) as counter:
        theirs(peer_drawn())
    return Case(
        {"cmrfast": lambda: ours(drawn()), "torch + MONAI": lambda: theirs(peer_drawn())},
        data={"cmrfast": drawn, "torch + MONAI": peer_drawn},
        flops=counter.get_total_flops(),
        proof=proof,
    )


def flair_inference(scale: float = 1.0, side: int = 56) -> Case:
    """The published network over both visits of a FLAIR case, 225 x 270 x 225 voxels."""
    from monai.inferers import sliding_window_inference

    shape = [max(side, round(n * scale ** (1 / 3))) for n in (225, 270, 225)]
    images = torch.randn(1, 2, *shape)
    model = MODELS["new_lesions"]().eval()
    other, network, overlap = plain.network(model), fold(model), side // 4

    def consensus(of: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda w: of(w[:, :1], w[:, 1:])["logits"][:, :1].sigmoid()

    def ours() -> list[Tensor]:
        return [sliding_window(consensus(network), images, (side,) * 3, overlap, batch=2)]

    def theirs() -> list[Tensor]:
        with torch.inference_mode():
            found = sliding_window_inference(
                images, (side,) * 3, 2, consensus(other), overlap=overlap / side
            )
        return [found]

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        other(*images[:, :, :side, :side, :side].split(1, 1))
    windows = 1
    for n in shape:
        windows *= -(-(n - side) // (side - overlap)) + 1
    return Case(
        {"cmrfast": ours, "torch + MONAI": theirs}, flops=windows * counter.get_total_flops()
    )


def slice_inference(job: Job) -> Case:
    """The network over a batch of a case's slices or patches, in evaluation mode."""
    task, feed = job.task()
    model = MODELS[job.name](task.config).eval()
    other = plain.network(model)
    batch = feed.batch(0, torch.arange(job.batch) % len(feed))
    # LGE and drawn masks are for training; in a registration both images are looked at.
    inputs = job.method.inputs
    names = inputs if job.name == "joint_registration" else inputs[:1]
    given = {name: batch[name] for name in names}

    def run(network: nn.Module) -> list[Tensor]:
        with torch.inference_mode():
            return list(network(**given).values())

    with FlopCounterMode(display=False) as counter:
        run(other)
    ways = {"cmrfast": lambda: run(model), "torch": lambda: run(other)}
    return Case(ways, flops=counter.get_total_flops(), tolerance=1e-3)


def _steps(job: Job, task: AnyTask, model: nn.Module, other: nn.Module) -> tuple[plain.Step, ...]:
    ranks = Ranks()
    network = Network(model, model, job.method.inputs, ranks.device)
    update = Update(job.method, task.config, task.recipe, network, ranks)

    def ours(given: plain.Batch) -> dict[str, Tensor]:
        return update(dict(given), lr=task.recipe.lr, epoch=_first_epoch(task))

    inputs = tuple(n for n in job.method.inputs if n != "myocardium")  # for two_step alone
    return ours, plain.training_step(job.name, other, task.recipe, inputs)


def _first_epoch(task: AnyTask) -> int:
    """From which on all parts of a method learn: its adversary joins late."""
    return int(getattr(task.recipe, "pretrain_epochs", 0))


def _without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout3d):
            module.p = 0.0
    return model

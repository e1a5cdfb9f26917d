"""Whole jobs: a training step including its data, and inference on one case.

Patients are phantoms. The peer is the same network with the same weights in plain PyTorch layers,
fed by MONAI. Before timing, both must have equal losses over two steps on one batch, without
dropout.
"""

import copy
import itertools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plain
from benchmarks.pipelines import pipeline
from benchmarks.workloads.workload import Workload
from cmrfast import methods
from cmrfast.data.datasets import open_dataset
from cmrfast.data.phantom import write_phantoms
from cmrfast.infer import sliding_window
from cmrfast.methods import AnyMethod, AnyTask, Feed
from cmrfast.models import MODELS
from cmrfast.models.new_lesions import fold
from cmrfast.train.network import TrainingNetwork
from cmrfast.train.ranks import Ranks
from cmrfast.train.update import Update


@dataclass(frozen=True)
class Job:
    """A method at the papers' image size.

    Args:
        name: name of the method.
        batch: samples per step; smaller than the paper's where two CPU cores require it.
        shrink: factor by which the phantoms' voxels are enlarged.
        config, recipe: changed fields.
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


#: Relative tolerance between the losses of both variants after one update.
_TOLERANCE = 1e-3


def step_of(job: Job) -> Workload:
    """One training step, including drawing its batch."""
    task, feed = job.task()
    model = MODELS[job.name](task.config).train()
    other = plain.network(model)
    ours, theirs = _steps(job, task, model, other)
    steps_done, first_epoch = itertools.count(), _first_epoch(task)

    def next_batch() -> dict[str, Tensor]:
        first = next(steps_done) * job.batch
        samples = (first + torch.arange(job.batch)) % len(feed)
        batch: dict[str, Tensor] = feed.batch(first_epoch + first // len(feed), samples)
        return batch

    next_peer_batch = pipeline(job.name, feed, task.config, task.recipe, job.batch)

    def verify() -> None:
        batch, peer_batch = next_batch(), next_peer_batch()
        shapes = ({k: tuple(x.shape) for k, x in b.items()} for b in (batch, peer_batch))
        assert next(shapes) == next(shapes)
        twin = _without_dropout(copy.deepcopy(model))
        steps = _steps(job, task, twin, plain.network(twin))
        for _ in range(2):  # the second loss depends on the gradients of the first step
            losses, peer_losses = (step(batch) for step in steps)
            for key, peer_loss in peer_losses.items():
                torch.testing.assert_close(losses[key], peer_loss, rtol=_TOLERANCE, atol=1e-5)

    with FlopCounterMode(display=False) as counter:
        theirs(next_peer_batch())
    return Workload(
        {"cmrfast": lambda: ours(next_batch()), "torch + MONAI": lambda: theirs(next_peer_batch())},
        data={"cmrfast": next_batch, "torch + MONAI": next_peer_batch},
        flops=counter.get_total_flops(),
        verify=verify,
    )


def flair_inference(scale: float = 1.0, side: int = 56) -> Workload:
    """The published network on both visits of a FLAIR case, 225 x 270 x 225 voxels."""
    from monai.inferers import sliding_window_inference

    shape = [max(side, round(n * scale ** (1 / 3))) for n in (225, 270, 225)]
    images = torch.randn(1, 2, *shape)
    model = MODELS["new_lesions"]().eval()
    other, network, overlap = plain.network(model), fold(model), side // 4

    def consensus(model: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda w: model(w[:, :1], w[:, 1:])["logits"][:, :1].sigmoid()

    def ours() -> list[Tensor]:
        return [sliding_window(consensus(network), images, (side,) * 3, overlap, batch=2)]

    def theirs() -> list[Tensor]:
        with torch.inference_mode():
            merged = sliding_window_inference(
                images, (side,) * 3, 2, consensus(other), overlap=overlap / side
            )
        return [merged]

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        other(*images[:, :, :side, :side, :side].split(1, 1))
    windows = 1
    for n in shape:
        windows *= -(-(n - side) // (side - overlap)) + 1
    return Workload(
        {"cmrfast": ours, "torch + MONAI": theirs}, flops=windows * counter.get_total_flops()
    )


def slice_inference(job: Job) -> Workload:
    """The network on a batch of slices or patches of a case, in evaluation mode."""
    task, feed = job.task()
    model = MODELS[job.name](task.config).eval()
    other = plain.network(model)
    batch = feed.batch(0, torch.arange(job.batch) % len(feed))
    # Other inputs are for training, except in registration, which needs both images.
    inputs = job.method.inputs
    names = inputs if job.name == "joint_registration" else inputs[:1]
    images = {name: batch[name] for name in names}

    def run(network: nn.Module) -> list[Tensor]:
        with torch.inference_mode():
            return list(network(**images).values())

    with FlopCounterMode(display=False) as counter:
        run(other)
    variants = {"cmrfast": lambda: run(model), "torch": lambda: run(other)}
    return Workload(variants, flops=counter.get_total_flops(), tolerance=1e-3)


def _steps(job: Job, task: AnyTask, model: nn.Module, other: nn.Module) -> tuple[plain.Step, ...]:
    ranks = Ranks()
    network = TrainingNetwork(model, model, job.method.inputs, ranks.device)
    update = Update(job.method, task.config, task.recipe, network, ranks)

    def ours(batch: plain.Batch) -> dict[str, Tensor]:
        return update(dict(batch), lr=task.recipe.lr, epoch=_first_epoch(task))

    inputs = tuple(n for n in job.method.inputs if n != "myocardium")  # an input of two_step only
    return ours, plain.training_step(job.name, other, task.recipe, inputs)


def _first_epoch(task: AnyTask) -> int:
    """The first epoch in which all parts of a method are trained: an adversary starts late."""
    return int(getattr(task.recipe, "pretrain_epochs", 0))


def _without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout3d):
            module.p = 0.0
    return model


_JOBS = {
    "siamese_lesion": Job("siamese_lesion", 32),
    "joint_scar": Job("joint_scar", 2),
    "joint_registration": Job("joint_registration", 4),
    "new_lesions": Job("new_lesions", 4, shrink=2, recipe={"spacing_mm": 1.6, "bias_field": False}),
    "adversarial_transfer": Job("adversarial_transfer", 4, recipe={"lge_masks": 1}),
}
#: Whole jobs: a training step of each method, and inference on one case.
JOBS: dict[str, tuple[str, Callable[[], Workload]]] = {
    **{
        f"{name}, step": (f"batch {job.batch}, with data", lambda job=job: step_of(job))
        for name, job in _JOBS.items()
    },
    **{
        f"{name}, inference": ("8 slices or patches", lambda job=job: slice_inference(job))
        for name, job in ((name, replace(job, batch=8)) for name, job in _JOBS.items())
        if name != "new_lesions"
    },
    "new_lesions, inference": ("FLAIR pair of 225x270x225, 252 windows", flair_inference),
}

"""A task that needs no images: a narrow siamese_lesion network on random patches."""

import os
import time
from dataclasses import replace
from pathlib import Path

import torch

from cmrfast import methods
from cmrfast.data import datasets
from cmrfast.data.datasets.case import Case, Dataset
from cmrfast.data.volume import Volume
from cmrfast.methods import Objective, Picture, Prediction, Row, Task
from cmrfast.train import train

QUIET = {"dropout_conv": 0.0, "dropout_full": 0.0}
SMALL = {"patch": 32, "channels": (4, 4, 4, 4), "hidden": 8, "features": 8, "batch": 8}
SAMPLES = 20


class RandomFeed:
    def __init__(self, seed):
        draw = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(SAMPLES) % 2
        self.t1 = torch.randn(SAMPLES, 1, 32, 32, generator=draw) + self.labels[:, None, None, None]
        self.lge = torch.randn(SAMPLES, 1, 32, 32, generator=draw) + self.t1

    def __len__(self):
        return SAMPLES

    def batch(self, epoch, samples):
        if os.environ.get("RANK") == os.environ.get("BROKEN_RANK", "none") and epoch == 1:
            if os.environ.get("BROKEN_HOW") == "hangs":
                time.sleep(1000)
            raise OSError("the disk is gone")
        return {"t1": self.t1[samples], "lge": self.lge[samples], "labels": self.labels[samples]}


class RandomTask(Task):
    def fit(self, cases):
        return {"patients": len(cases)}

    def feed(self, cases, *, seed):
        assert self.fitted["patients"] == len(cases)
        return RandomFeed(seed)

    def predict(self, model, case):
        return Prediction({}, {"class": 1})

    def evaluate(self, model, case) -> list[Row]:
        feed = RandomFeed(5)
        right = model(feed.t1)["logits"].argmax(1) == feed.labels
        return [Row({"case": case.name}, {"accuracy": right.float().mean().item()})]

    def picture(self, model, case):
        empty = Volume(torch.zeros(1, 8, 8, 2), torch.eye(4))
        return Picture(empty, empty.with_data(torch.ones(1, 8, 8, 2, dtype=torch.uint8)))


def cases(count=6):
    return tuple(Case(f"subject{n}", {}, {}, {}) for n in range(1, count + 1))


class Layout:
    """Finds the made-up cohort in any folder; ``images``: says where its images would be."""

    def __init__(self, images=False):
        self.images = images

    def open(self, root):
        found = cases()
        if self.images:
            found = [replace(c, images={"t1": Path(root) / f"{c.name}.nii"}) for c in found]
        return Dataset("t1_lge", Path(root), tuple(found))


SIAMESE_LESION = methods.get("siamese_lesion")


def loss(outputs, batch, config, *, group=None):
    """The method's; of one rank not finite, where a test asks for it."""
    if os.environ.get("BROKEN_HOW") == "overflows" and (
        os.environ["RANK"] == os.environ["BROKEN_RANK"]
    ):
        outputs = {**outputs, "logits": outputs["logits"] * torch.inf}
    return SIAMESE_LESION.loss(outputs, batch, config, group=group)


METHOD = replace(
    SIAMESE_LESION,
    task=RandomTask,
    loss=loss,
    objective=Objective("accuracy", maximise=True),
    published={},
)


def install(patch, method=METHOD):
    """Let training read the made-up cohort; ``patch(target, name, value)`` sets an attribute."""
    known = methods.get
    patch(methods, "get", lambda name: method if name == method.name else known(name))
    patch(datasets, "LAYOUTS", {**datasets.LAYOUTS, "t1_lge": Layout()})


def run_training(out, **options):
    """A run of the method of this file, in six steps on the CPU."""
    changes = {**SMALL, **options.pop("changes", {})}
    return train(
        "siamese_lesion",
        "nowhere",
        out,
        **{"steps": 6, "changes": changes, "device": "cpu", **options},
    )


def weights(run):
    """The weights of a run's newest checkpoint."""
    return run.checkpoints.load_newest(None).state["model"]


def same(one, other):
    """Assert that the tensors of two states are equal to the bit."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name

"""A task that needs no images: a narrow siamese_lesion network on random patches."""

import os
import time
from pathlib import Path

import torch

from cmrfast.data.datasets.case import Case
from cmrfast.data.volume import Volume
from cmrfast.tasks import Prediction, Row, Task, View

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
    name = "siamese_lesion"
    layouts = ("t1_lge",)
    inputs = ("t1", "lge")
    objective = "accuracy"

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
        return [{"case": case.name, "accuracy": right.float().mean().item()}]

    def view(self, model, case):
        empty = Volume(torch.zeros(1, 8, 8, 2), torch.eye(4))
        return View(empty, empty.with_data(torch.ones(1, 8, 8, 2, dtype=torch.uint8)))


def cases(count=6):
    return tuple(Case(f"subject{n}", {}, {}, {}) for n in range(1, count + 1))


def install(patch):
    """Let training read the made-up cohort; ``patch(target, name, value)`` sets an attribute."""
    from cmrfast.data.datasets.case import Dataset
    from cmrfast.train import loop, run

    def opened(name, root):
        return Dataset(name, Path(root), cases())

    patch(run, "open_dataset", opened)
    patch(run, "task_class", lambda name: RandomTask)
    patch(loop, "task_class", lambda name: RandomTask)

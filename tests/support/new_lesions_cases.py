"""Tasks of new_lesions on coarse grids, and a network that knows the answer."""

from dataclasses import replace

from torch import nn

from cmrfast import methods
from cmrfast.methods import Task
from cmrfast.models.new_lesions import Config, Recipe

SMALL = Recipe(
    bias_field=False,
    spacing_mm=4.0,
    patch=16,
    overlap=4,
    per_patient=8,
    batch=4,
    stored="float32",
)
METHOD = methods.get("new_lesions")
TASK = METHOD.task


def fitted(cases, recipe=SMALL, **options) -> Task:
    facts = TASK(Config(), recipe, **options).fit(cases)
    return TASK(Config(), recipe, facts, **options)


def changed(task, **changes):
    """The task with another recipe."""
    return TASK(Config(), replace(SMALL, **changes), task.fitted, cache=task.cache)


def pair_of(case):
    return case.image("earlier"), case.image("later")


class Oracle(nn.Module):
    """Says what the task's own images say: new is what is far brighter than before."""

    def forward(self, earlier, later):
        return {"logits": (100 * (later - earlier - 2)).expand(-1, 5, -1, -1, -1)}

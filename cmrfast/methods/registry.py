"""The five methods on images: what each reads, learns from, predicts and is judged by."""

from importlib import import_module

from cmrfast.models import MODELS
from cmrfast.tasks.task import Batch, Feed, Output, Prediction, Row, Task, View

__all__ = ["Batch", "Feed", "Output", "Prediction", "Row", "Task", "View", "task_class"]


def task_class(name: str) -> type[Task]:
    """The task of a method; its module is imported when it is asked for.

    Args:
        name: a key of ``cmrfast.models.MODELS``.
    """
    if name not in MODELS:
        raise ValueError(f"task_class: name must be one of {', '.join(MODELS)}; got {name!r}")
    found: type[Task] = import_module(f"{__name__}.{name}").TASK
    return found

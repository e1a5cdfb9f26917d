"""Trackers, which show losses beside those of other runs: TensorBoard, MLflow, Weights & Biases."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

_PROJECT = "cmrfast"


class Tracker(Protocol):
    """What a log passes every step to."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the values of a step."""
        ...

    def close(self) -> None:
        """Finish, so that nothing is lost."""
        ...


def open_trackers(
    names: Sequence[str], folder: Path, *, start: int, fields: Mapping[str, Any]
) -> list[Tracker]:
    """Open trackers for a run, or go on with those that it had before.

    Args:
        names: keys of ``TRACKERS``.
        folder: of the run, which holds what they write unless they are set up otherwise.
        start: steps done so far.
        fields: of the run, to tell it from others.
    """
    opened: list[Tracker] = []
    for name in names:
        try:
            opened.append(TRACKERS[name](folder, start, fields))
        except ImportError as error:
            raise ImportError(
                f"train: tracking with {name} needs the extra {name}: pip install 'cmrfast[{name}]'"
            ) from error
    return opened


class _TensorBoard:
    """Events in ``tensorboard/``."""

    def __init__(self, folder: Path, start: int, fields: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard drops events from the purged step on; the last one kept is ``start``.
        self._writer = SummaryWriter(folder / "tensorboard", purge_step=start + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    """A run in ``mlflow.db``, or where MLFLOW_TRACKING_URI says."""

    def __init__(self, folder: Path, start: int, fields: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve()}/mlflow.db"
        self._client = MlflowClient(tracking_uri=uri)
        known = folder / "mlflow-run.txt"
        if start and known.exists():
            self._run = known.read_text("utf-8").strip()
            return
        experiment = self._client.get_experiment_by_name(_PROJECT)
        number = (
            experiment.experiment_id if experiment else self._client.create_experiment(_PROJECT)
        )
        self._run = self._client.create_run(number, run_name=folder.resolve().name).info.run_id
        known.write_text(self._run + "\n", "utf-8")
        for name, value in fields.items():
            self._client.log_param(self._run, name, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        metrics = [self._metric(name, value, _now_ms(), step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _Wandb:
    """A run in ``wandb/``, offline unless WANDB_MODE says otherwise; ``wandb sync`` uploads it."""

    def __init__(self, folder: Path, start: int, fields: Mapping[str, Any]) -> None:
        import wandb

        known = folder / "wandb-run.txt"
        if not (start and known.exists()):
            known.write_text(uuid4().hex + "\n", "utf-8")
        self._run = wandb.init(
            project=_PROJECT,
            name=folder.resolve().name,
            id=known.read_text("utf-8").strip(),
            resume="allow",
            dir=folder,
            config=dict(fields),
            mode=None if "WANDB_MODE" in os.environ else "offline",
            settings=wandb.Settings(silent=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _now_ms() -> int:
    return round(time.time() * 1000)


#: Name → how it is opened; each is an extra of its name.
TRACKERS: Mapping[str, Callable[[Path, int, Mapping[str, Any]], Tracker]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "wandb": _Wandb,
}

"""Trackers: the real packages get every step, also of a run that is resumed."""

import sys

import pytest

from cmrfast.train import train
from cmrfast.train.plan import TrainOptions
from cmrfast.train.trackers import TRACKERS, open_trackers
from tests.support import training_task


def logged(name, folder, values):
    """Log one value a step in two sessions, as a run that is resumed does."""
    fields = {"method": "joint_scar", "lr": 0.001}
    for start, part in ((0, values[:3]), (3, values[3:])):
        (tracker,) = open_trackers([name], folder, start=start, fields=fields)
        for step, value in enumerate(part, start + 1):
            tracker.log(step, {"loss": value})
        tracker.close()


VALUES = [5.0, 4.0, 3.0, 2.0, 1.0]


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged("tensorboard", tmp_path, VALUES)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(e.step, e.value) for e in events] == list(enumerate(VALUES, 1))


def test_mlflow(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    logged("mlflow", tmp_path, VALUES)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("cmrfast")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == list(enumerate(VALUES, 1))
    assert run.data.params == {"method": "joint_scar", "lr": "0.001"}
    assert run.info.status == "FINISHED"


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    logged("wandb", tmp_path, VALUES)
    written = list((tmp_path / "wandb").glob("offline-run-*"))
    ids = {folder.name.rpartition("-")[2] for folder in written}
    assert ids == {(tmp_path / "wandb-run.txt").read_text().strip()}


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, name):
    modules = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
    for module in [m for m in sys.modules if m.startswith(f"{modules[name]}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, modules[name], None)
    said = rf"tracking with {name} needs the extra {name}: pip install 'cmrfast\[{name}\]'"
    with pytest.raises(ImportError, match=said):
        open_trackers([name], tmp_path, start=0, fields={})


def test_training_tells_its_tracker(tmp_path, monkeypatch):
    training_task.install(monkeypatch.setattr)
    told = []

    class Told:
        def __init__(self, folder, start, fields):
            assert fields["method"] == "siamese_lesion"
            assert "lr" in fields
            told.append(start)

        def log(self, step, values):
            told.extend([step] * ("loss" in values))

        def close(self):
            told.append("closed")

    monkeypatch.setitem(TRACKERS, "wandb", Told)
    for steps in (2, 3):
        train(
            *("siamese_lesion", tmp_path, tmp_path / "run"),
            changes=training_task.SMALL,
            steps=steps,
            resume=True,
            track=("wandb",),
        )
    assert told == [0, 1, 2, "closed", 2, 3, "closed"]


def test_an_unknown_tracker_is_refused():
    with pytest.raises(ValueError, match="train: track must be one of tensorboard, mlflow, wandb"):
        TrainOptions(track=("neptune",))

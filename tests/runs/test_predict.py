"""Prediction of a cohort: files out, one bad case stops no other, what is there is skipped."""

import json

import pytest
import torch

from cmrfast import CheckpointError
from cmrfast.data import Volume, read_nifti, write_nifti
from cmrfast.predict import predict
from cmrfast.tasks import Output, Prediction
from cmrfast.train import Run, run, train
from tests.support import training_task
from tests.support.training_task import RandomTask


class Thresholding(RandomTask):
    """Needs an image; runs out of memory with more than two slices at once."""

    single_image = "lge"
    most = 2

    def predict(self, model, case):
        assert not model.training
        volume = case.image("lge")
        if self.predict_batch > self.most:
            raise torch.OutOfMemoryError("no memory left")
        mask = volume.with_data((volume.data > 0.5).to(torch.uint8))
        return Prediction({"bright": Output(mask, case.images["lge"])}, {"slices": volume.shape[2]})


@pytest.fixture
def trained(tmp_path, monkeypatch):
    training_task.install(monkeypatch.setattr)
    monkeypatch.setattr(run, "task_class", lambda name: Thresholding)
    changes = training_task.SMALL
    return train("siamese_lesion", "nowhere", tmp_path / "run", steps=2, changes=changes)


@pytest.fixture
def images(tmp_path):
    matrix = torch.diag(torch.tensor([-1.5, -1.5, 8, 1.0]))
    paths = []
    for name in ("a.nii.gz", "b.nii.gz"):
        paths.append(tmp_path / name)
        write_nifti(paths[-1], Volume(torch.rand(1, 6, 5, 3), matrix))
    return paths


def test_masks_lie_on_their_images(trained, images, tmp_path):
    outcome = predict(trained, images, tmp_path / "out")
    assert (outcome.done, outcome.skipped, outcome.failed) == (["a", "b"], [], {})
    made, image = read_nifti(tmp_path / "out" / "a" / "bright.nii.gz"), read_nifti(images[0])
    assert made.shares_grid(image)
    assert torch.equal(made.data.bool(), image.data > 0.5)
    facts = json.loads((tmp_path / "out" / "a" / "prediction.json").read_text())
    assert facts["slices"] == 3
    assert facts["made_by"]["step"] == 2


def test_what_is_there_is_skipped_until_the_network_is_another(trained, images, tmp_path):
    out, lines = tmp_path / "out", []
    predict(trained, images[:1], out)
    again = predict(trained, images, out, progress=lines.append)
    assert (again.done, again.skipped) == (["b"], ["a"])
    assert lines == ["a: there already", "b: bright"]
    (out / "a" / "bright.nii.gz").unlink()
    assert predict(trained, images, out).done == ["a"]
    train(
        "siamese_lesion", "nowhere", trained.path, steps=3, changes=training_task.SMALL, resume=True
    )
    assert predict(Run.open(trained.path), images, out).done == ["a", "b"]


def test_a_bad_case_stops_no_other(trained, images, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"not an image")
    inputs = [tmp_path / "gone.nii.gz", broken, *images, images[0]]
    outcome = predict(trained, inputs, tmp_path / "out")
    assert outcome.done == ["a", "b"]
    failed = dict(outcome.failed)
    assert "neither a file nor a folder" in failed.pop(str(inputs[0]))
    assert "broken.nii.gz" in failed.pop("broken")
    assert failed == {str(images[0]): "predict: a second case is named a"}


def test_less_memory_makes_smaller_batches_until_one(trained, images, tmp_path, monkeypatch):
    assert predict(trained, images, tmp_path / "one").done == ["a", "b"]
    monkeypatch.setattr(Thresholding, "most", 0)
    assert predict(trained, images, tmp_path / "two").failed == dict.fromkeys(
        "ab", "no memory left"
    )


def test_several_images_need_a_folder(trained, images, tmp_path, monkeypatch):
    monkeypatch.setattr(Thresholding, "single_image", None)
    outcome = predict(trained, images[:1], tmp_path / "out")
    (message,) = outcome.failed.values()
    assert "takes several images; give a folder in the layout t1_lge" in message


def test_ranks_share_the_cases(trained, images, tmp_path):
    parts = [predict(trained, images, tmp_path / "out", rank=r, ranks=2) for r in (0, 1)]
    assert [part.done for part in parts] == [["a"], ["b"]]


def test_a_run_without_checkpoint(trained, images, tmp_path):
    import shutil

    shutil.rmtree(trained.checkpoints.folder)
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        predict(trained, images, tmp_path / "out")

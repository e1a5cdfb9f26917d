"""Prediction of a cohort: files out, one bad case stops no other, what is there is skipped."""

import json
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmrfast import CheckpointError, FileError
from cmrfast.data import Volume, read_nifti, write_nifti
from cmrfast.data.datasets import Files, MaskNeed, Needs, Structure
from cmrfast.methods import Output, Prediction
from cmrfast.runs.outputs import case_folder
from cmrfast.runs.predict import predict
from cmrfast.train import Ranks, Run, train
from tests.support import training_task
from tests.support.training_task import RandomTask

ONE_IMAGE = Needs(("lge",), {}, Files(("lge",)), Files(("lge",)))


class Thresholding(RandomTask):
    """Needs an image; runs out of memory with more than two slices at once."""

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
    method = replace(training_task.METHOD, task=Thresholding, needs=ONE_IMAGE)
    training_task.install(monkeypatch.setattr, method)
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


def test_another_case_of_a_name_that_is_there_is_refused(trained, images, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other" / "a.nii.gz"
    other.parent.mkdir()
    other.write_bytes(images[1].read_bytes())
    predict(trained, images[:1], out)
    before = (out / "a" / "bright.nii.gz").read_bytes()
    for _ in range(2):
        outcome = predict(trained, [other, images[1]], out)
        assert (outcome.done + outcome.skipped, [*outcome.failed]) == (["b"], ["a"])
        assert outcome.failed["a"] == (
            f"predict: a second case is named a: {out} holds what was predicted from "
            f"{images[0].resolve()}, not from {other.resolve()}; choose another folder"
        )
    assert (out / "a" / "bright.nii.gz").read_bytes() == before
    train(
        "siamese_lesion", "nowhere", trained.path, steps=3, changes=training_task.SMALL, resume=True
    )
    assert [*predict(Run.open(trained.path), [other], out).failed] == ["a"]


def test_a_copy_of_an_image_is_the_same_input(trained, images, tmp_path):
    copy = tmp_path / "copy" / "a.nii.gz"
    copy.parent.mkdir()
    copy.write_bytes(images[0].read_bytes())
    predict(trained, images[:1], tmp_path / "out")
    assert predict(trained, [copy], tmp_path / "out").skipped == ["a"]


def test_a_file_that_has_changed_is_predicted_again(trained, images, tmp_path):
    out = tmp_path / "out"
    predict(trained, images, out)
    repaired = read_nifti(images[0])
    write_nifti(images[0], repaired.with_data(1 - repaired.data))
    outcome = predict(trained, images, out)
    assert (outcome.done, outcome.skipped) == (["a"], ["b"])
    made = read_nifti(out / "a" / "bright.nii.gz")
    assert torch.equal(made.data.bool(), 1 - repaired.data > 0.5)


@pytest.mark.parametrize("inputs", [None, [], {"image lge": 1}])
def test_a_prediction_without_a_record_of_its_inputs_is_made_again(
    inputs, trained, images, tmp_path
):
    predict(trained, images[:1], tmp_path / "out")
    file = tmp_path / "out" / "a" / "prediction.json"
    facts = json.loads(file.read_text())
    del facts["made_by"]["files"], facts["made_by"]["inputs"]
    if inputs is not None:
        facts["made_by"]["inputs"] = inputs
    file.write_text(json.dumps(facts))
    assert predict(trained, images[:1], tmp_path / "out").done == ["a"]
    assert predict(trained, images[:1], tmp_path / "out").skipped == ["a"]


def test_a_mask_that_is_read_is_an_input(trained, images, tmp_path, monkeypatch):
    masks = {"wall": MaskNeed("lge", {"wall": Structure(("wall",))})}
    needs = Needs(("lge",), masks, Files(("lge",)), Files(("lge",), optional=("wall",)))
    training_task.install(monkeypatch.setattr, replace(trained.method, needs=needs))
    image, mask = images
    case = {"lge": image, "wall": mask}
    assert predict(trained, [{"lge": image}], tmp_path / "out").done == ["a"]
    assert predict(trained, [case], tmp_path / "out").done == ["a"]
    assert predict(trained, [case], tmp_path / "out").skipped == ["a"]
    redrawn = tmp_path / "redrawn.nii.gz"
    redrawn.write_bytes(image.read_bytes())
    assert predict(trained, [case | {"wall": redrawn}], tmp_path / "out").done == ["a"]


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


@given(st.one_of(st.text(), st.sampled_from(["../a", "a/b", "/", "a\\b", "...", "a.nii"])))
def test_a_case_has_its_folder_in_the_output_or_none(name):
    out, refused = Path("/nowhere/out"), None
    try:
        folder = case_folder(out, name)
    except FileError as error:
        refused, folder = str(error), out / "x"
    assert refused is None or repr(name) in refused
    assert Path(os.path.normpath(folder)).parent == out


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "a\\b", "a\0"])
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(FileError, match=r"^predict: .* cannot be the name of a case's folder$"):
        case_folder(Path("out"), name)


def test_a_file_cannot_name_its_way_out(trained, images, tmp_path):
    hostile = tmp_path / "...nii.gz"
    hostile.write_bytes(images[0].read_bytes())
    outcome = predict(trained, [hostile, images[1]], tmp_path / "in" / "out")
    assert outcome.done == ["b"]
    assert outcome.failed == {"..": "predict: '..' cannot be the name of a case's folder"}
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["out"]


def test_less_memory_makes_smaller_batches_until_one(trained, images, tmp_path, monkeypatch):
    assert predict(trained, images, tmp_path / "one").done == ["a", "b"]
    monkeypatch.setattr(Thresholding, "most", 0)
    assert predict(trained, images, tmp_path / "two").failed == dict.fromkeys(
        "ab", "no memory left"
    )


def test_several_images_need_a_folder(trained, images, tmp_path, monkeypatch):
    needs = training_task.METHOD.needs
    training_task.install(monkeypatch.setattr, replace(trained.method, needs=needs))
    outcome = predict(trained, images[:1], tmp_path / "out")
    (message,) = outcome.failed.values()
    assert "takes several files; give --t1 FILE --t1-myocardium FILE, or a folder" in message


@pytest.mark.parametrize(("rank", "case"), [(0, "a"), (1, "b")])
def test_ranks_share_the_cases(rank, case, trained, images, tmp_path, monkeypatch):
    def two_ranks(device):
        return nullcontext(Ranks(rank, 2))

    monkeypatch.setitem(predict.__globals__, "process_group", two_ranks)
    assert predict(trained, images, tmp_path / "out").done == [case]


def test_a_run_without_checkpoint(trained, images, tmp_path):
    import shutil

    shutil.rmtree(trained.checkpoints.folder)
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        predict(trained, images, tmp_path / "out")

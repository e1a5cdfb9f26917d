"""A run trained on data of one's own, through every command; predictions as a data set has them."""

import csv
import json
import os
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from cmrfast import FileError
from cmrfast.data import Volume, open_dataset, read_nifti, write_nifti
from cmrfast.data.datasets import Case, Labelling, write_nnunet, write_table
from cmrfast.data.phantom import write_phantoms
from cmrfast.methods import Output, Prediction
from cmrfast.runs import evaluate, predict, report
from cmrfast.runs.outputs import BidsDerivatives, CaseFolders, NnunetLabels
from cmrfast.runs.predict import Outcome, find_cases
from cmrfast.train import Run, train

SMALL = {
    **{"image": 32, "root": 32, "units": (1, 1, 1), "width": 16, "depth": 1, "heads": 2},
    **{"decoder": (16, 16, 8, 8, 8), "batch": 4},
}
VALUES = {"myocardium": (2,), "scar": (3, 4)}


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patients")
    return open_dataset("emidec", write_phantoms("emidec", folder / "p", cases=4, shrink=4))


@pytest.fixture(scope="module")
def nnunet(patients, tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    structures = ["lv", "myocardium", "scar"]
    return write_nnunet(
        patients[:3],
        folder,
        images=["LGE"],
        label="LGE",
        structures=structures,
        number=7,
        name="Scar",
        test=patients[3:],
    )


@pytest.fixture(scope="module")
def run(patients, tmp_path_factory):
    """A run on a table whose masks have no names for their values."""
    folder = tmp_path_factory.mktemp("run")
    write_table(patients.cases, folder / "cases.csv")
    return train(
        "joint_scar", folder, folder / "run", labels=VALUES, steps=1, changes=SMALL, device="cpu"
    )


def test_it_is_evaluated_and_reported(run):
    run = Run.open(run.path)
    assert (run.plan.layout, run.plan.labels) == ("table", VALUES)
    rows = evaluate(run).rows
    assert {row.case for row in rows} == {*run.plan.split.test}
    assert report(run).is_file()


def test_values_of_another_data_set(run, patients, nnunet):
    scores = [
        evaluate(run, root, part="all", labels=labels).scores["scar_dice"]
        for root, labels in (
            (patients.root, None),
            (nnunet, None),
            (run.data, None),
            (run.data, {"myocardium": (2,), "scar": (3,)}),
        )
    ]
    assert scores[0] == pytest.approx(scores[1], nan_ok=True)
    assert scores[0] == pytest.approx(scores[2], nan_ok=True)
    with pytest.raises(ValueError, match="labels: structures are myocardium, scar; got lv"):
        evaluate(run, part="all", labels={"lv": (1,)})


def test_patients_without_labels_cannot_be_scored(run, patients, tmp_path):
    write_table([replace(case, labels={}) for case in patients], tmp_path / "cases.csv")
    with pytest.raises(FileError) as error:
        evaluate(run, tmp_path, part="all")
    assert str(error.value) == (
        f"evaluate: no case of {tmp_path} can be scored; missing: LGE label (myocardium, scar)"
    )


def test_a_run_continues_with_its_labels(run, tmp_path):
    again = train("joint_scar", run.data, run.path, steps=1, changes=SMALL, resume=True)
    assert again.plan.labels == VALUES
    path = run.path / "run.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"plan": content["plan"] | {"labels": {"scar": 3}}}))
    from cmrfast import CheckpointError

    try:
        with pytest.raises(CheckpointError, match="labels: scar must be a list of whole numbers"):
            Run.open(run.path)
    finally:
        path.write_text(json.dumps(content))


def test_nnunet_in_and_out(run, nnunet, patients, tmp_path):
    outcome = predict(run, [nnunet], tmp_path / "out", like="nnunet")
    assert (sorted(outcome.done), outcome.failed) == (sorted(patients.names), {})
    written = sorted(path.name for path in (tmp_path / "out").glob("*.nii*"))
    assert written == sorted(f"{name}.nii.gz" for name in patients.names)
    masks = tmp_path / "masks"
    predict(run, [nnunet], masks)
    for name in patients.names:
        image = nibabel.load(next(nnunet.glob(f"images*/{name}_0000.nii.gz")))
        label = nibabel.load(tmp_path / "out" / f"{name}.nii.gz")
        assert label.get_data_dtype() == np.uint8
        assert np.array_equal(label.affine, image.affine)
        values = np.asanyarray(label.dataobj)
        scar, wall = (
            np.asanyarray(nibabel.load(masks / name / f"{structure}.nii.gz").dataobj) != 0
            for structure in ("scar", "myocardium")
        )
        assert np.array_equal(values, np.where(scar, 3, np.where(wall, 2, 0)))
    again = predict(run, [nnunet / "imagesTs"], tmp_path / "out", like="nnunet")
    assert again.skipped == [*patients.names[3:]]


def test_one_folder_of_channels(run, nnunet, patients, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in (nnunet / "imagesTs").iterdir():
        (bare / path.name).write_bytes(path.read_bytes())
    outcome = predict(run, [bare], tmp_path / "out")
    assert (outcome.done, outcome.failed) == ([*patients.names[3:]], {})
    (message,) = predict(run, [bare], tmp_path / "n", like="nnunet").failed.values()
    assert message.startswith("predict: the dataset.json of ")


def test_facts_of_a_cohort_in_one_table(run, patients, tmp_path):
    for part in (patients[0].images["LGE"], patients.root):
        predict(run, [part], tmp_path)
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [*patients.names]
    for row in rows:
        facts = json.loads((tmp_path / row["case"] / "prediction.json").read_text())
        assert float(row["scar_ml"]) == facts["scar_ml"]


def test_a_case_by_its_files(run, patients, tmp_path):
    file = patients[0].images["LGE"]
    assert predict(run, [{"lge": file}], tmp_path).done == [patients[0].name]
    with pytest.raises(ValueError, match=r"joint_scar: files are LGE; got t2"):
        predict(run, [{"t2": file}], tmp_path)
    with pytest.raises(
        ValueError, match="like must be one of folders, nnunet, bids, dicom-seg; got 'x'"
    ):
        predict(run, [file], tmp_path, like="x")


def test_dicom_in_and_out(run, tmp_path):
    pydicom, hd = pytest.importorskip("pydicom"), pytest.importorskip("highdicom")
    from tests.data.test_dicom import put
    from tests.data.test_dicom_seg import STUDY

    series = tmp_path / "series7"
    series.mkdir()
    pixels = np.random.default_rng(0).integers(0, 900, (3, 24, 20)).astype(np.uint16)
    for number, plane in enumerate(pixels):
        put(series / f"{number}.dcm", 8 * number, pixels=plane, **STUDY)
    outcome = predict(run, [{"lge": series}], tmp_path / "out", like="dicom-seg")
    assert (outcome.done, outcome.failed) == (["series7"], {})
    assert predict(run, [series], tmp_path / "nifti").done == ["series7"]
    assert predict(run, [{"lge": series}], tmp_path / "nifti").skipped == ["series7"]
    assert predict(run, [{"lge": series}], tmp_path / "out").done == ["series7"]
    mask = read_nifti(tmp_path / "nifti" / "series7" / "myocardium.nii.gz")
    file = hd.seg.segread(tmp_path / "out" / "series7" / "myocardium.dcm")
    assert file.get_segment_description(1).segment_label == "myocardium"
    assert file.pixel_array.sum() == mask.data.sum()
    assert isinstance(file, pydicom.Dataset)
    file = write_nifti(tmp_path / "a.nii.gz", mask)
    (message,) = predict(
        run, [tmp_path / "a.nii.gz"], tmp_path / "o", like="dicom-seg"
    ).failed.values()
    assert message == "predict: dicom-seg takes masks on folders of DICOM slices; a has none"


def test_a_folder_of_dicom_slices_is_an_image_and_any_other_a_data_set(run, tmp_path):
    for name, content in {"series": b"\0" * 128 + b"DICM", "notes": b"no DICOM"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "1").write_bytes(content)
    outcome = Outcome()
    (case,) = find_cases(run, [tmp_path / "series", tmp_path / "notes"], outcome)
    assert (case.name, case.images) == ("series", {"LGE": tmp_path / "series"})
    (message,) = outcome.failed.values()
    assert "notes holds no case of emidec" in message


def test_2d_and_4d_images(run, tmp_path):
    matrix = torch.diag(torch.tensor([1.5, 1.5, 8, 1.0]))
    flat = np.random.default_rng(0).random((24, 20), np.float32)
    nibabel.save(nibabel.Nifti1Image(flat, matrix.numpy()), tmp_path / "flat.nii.gz")
    frames = torch.rand(3, 24, 20, 2)
    write_nifti(tmp_path / "cine.nii.gz", Volume(frames, matrix))
    write_nifti(tmp_path / "second.nii.gz", Volume(frames[1:2], matrix))
    outcome = predict(run, [tmp_path / "flat.nii.gz"], tmp_path / "out")
    assert outcome.done == ["flat"]
    assert read_nifti(tmp_path / "out" / "flat" / "scar.nii.gz").shape == (24, 20, 1)
    (message,) = predict(run, [tmp_path / "cine.nii.gz"], tmp_path / "out").failed.values()
    assert "cine.nii.gz must have 1 channel; got 3 channels or time points" in message
    inputs = [tmp_path / "cine.nii.gz", tmp_path / "second.nii.gz"]
    assert predict(run, inputs, tmp_path / "chosen", frame=2).done == ["cine", "second"]
    assert predict(run, inputs[:1], tmp_path / "chosen", frame=2).skipped == ["cine"]
    assert predict(run, inputs[:1], tmp_path / "other", frame=1).done == ["cine"]
    assert predict(run, inputs[:1], tmp_path / "other", frame=2).done == ["cine"]
    masks = [read_nifti(tmp_path / "chosen" / n / "scar.nii.gz").data for n in ("cine", "second")]
    assert torch.equal(*masks)


@pytest.fixture
def made(tmp_path):
    """A case of two channels, the mask drawn on the second, and a prediction of it."""
    matrix = torch.diag(torch.tensor([2, 2, 8, 1.0]))
    grids = {"T2": (Volume(torch.zeros(1, 6, 6, 2), matrix)), "LGE": None}
    finer = matrix.clone()
    finer[0, 0] = finer[1, 1] = 1
    grids["LGE"] = Volume(torch.zeros(1, 12, 12, 2), finer)
    images = {}
    for number, (name, volume) in enumerate(grids.items()):
        images[name] = tmp_path / f"p_{number:04d}.nii.gz"
        write_nifti(images[name], volume)
    labelling = Labelling(
        "LGE", {0: 0, 5: 0, 7: 1, 9: 2}, {"wall": (1, 2), "scar": (2,)}, on_all=True
    )
    wall = torch.zeros(1, 12, 12, 2, dtype=torch.bool)
    wall[:, 2:10, 2:10] = True
    scar = torch.zeros_like(wall)
    scar[:, 4:6, 4:6] = True
    prediction = Prediction(
        {
            "scar": Output(grids["LGE"].with_data(scar), images["LGE"], {1: "scar"}),
            "wall": Output(grids["LGE"].with_data(wall), images["LGE"], {1: "wall"}),
            "both": Output(
                grids["LGE"].with_data(wall.byte() + scar), images["LGE"], {1: "wall", 2: "scar"}
            ),
            "chance": Output(grids["LGE"], images["LGE"]),
        },
        {"ml": 1.5, "pairs": [{"slice": 0, "theta": [[1, 2]]}, {"slice": 1, "theta": [[3, 4]]}]},
    )
    return Case("p", images, {}, {"LGE": labelling}), prediction


def test_labels_of_nnunet_lie_on_channel_0000(made, tmp_path):
    case, prediction = made
    assert NnunetLabels(tmp_path / "out").write(case, prediction, {}) == ["p.nii.gz"]
    label = read_nifti(tmp_path / "out" / "p.nii.gz")
    assert label.shares_grid(read_nifti(case.images["T2"]))
    assert label.data.unique().tolist() == [0, 7, 9]
    assert (label.data == 9).sum() == 2
    assert (label.data == 7).sum() == 2 * 15


def test_what_nnunet_cannot_take_is_named(made, tmp_path):
    case, prediction = made
    outputs = NnunetLabels(tmp_path / "out")
    with pytest.raises(FileError, match="of p there is no mask that nnU-Net could take"):
        outputs.write(case, Prediction({"chance": prediction.images["chance"]}), {})
    with pytest.raises(FileError, match="p has no file such as CASE_0000"):
        outputs.write(Case("p", {}, {}, case.labelling), prediction, {})
    with pytest.raises(FileError, match=r"the dataset.json of p must name scar, wall; it does not"):
        outputs.write(Case("p", case.images, {}, {}), prediction, {})


def test_derivatives_of_bids(made, tmp_path):
    case, prediction = made
    outputs = BidsDerivatives(tmp_path / "out")
    names = outputs.write(case, prediction, {})
    assert names == [
        f"sub-p/anat/sub-p_{end}.nii.gz"
        for end in ("label-scar_mask", "label-wall_mask", "desc-both_dseg", "desc-chance_map")
    ]
    table = (tmp_path / "out/sub-p/anat/sub-p_desc-both_dseg.tsv").read_text()
    assert table == "index\tname\n1\twall\n2\tscar\n"
    description = json.loads((tmp_path / "out/dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    (read,) = open_dataset("bids", tmp_path / "out")
    assert [*read.labels] == ["both", "scar", "wall"]
    assert read.labelling["both"].classes == {"wall": (1,), "scar": (2,)}
    for name in ("p_", "sub-p", "_"):
        other = Case(name, case.images, {}, {})
        with pytest.raises(FileError, match=r"cannot be a subject of BIDS"):
            outputs.write(other, prediction, {})


def test_a_row_for_each_transform(made, tmp_path):
    case, prediction = made
    outputs = CaseFolders(tmp_path / "out")
    outputs.write(case, prediction, {"run": "r"})
    outputs.write_table()
    assert (tmp_path / "out/predictions.csv").read_text() == (
        "case,ml,slice,theta 0 0,theta 0 1\np,1.5,0,1,2\np,1.5,1,3,4\n"
    )
    assert outputs.made_by(case) == {"run": "r"}


def test_the_dtype_is_that_of_the_result(made, tmp_path):
    case, prediction = made
    CaseFolders(tmp_path / "out").write(case, prediction, {})
    types = {
        name: nibabel.load(tmp_path / f"out/p/{name}.nii.gz").get_data_dtype()
        for name in prediction.images
    }
    assert types == {"scar": np.uint8, "wall": np.uint8, "both": np.uint8, "chance": np.float32}

"""nnU-Net's raw data sets: written from any layout, read back, damaged, checked by nnU-Net."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrfast import FileError
from cmrfast.data import Volume, open_dataset, read_nifti, write_nifti
from cmrfast.data.datasets import Case, Labelling, read_channels, read_nnunet, write_nnunet
from cmrfast.data.phantom import write_phantoms
from cmrfast.methods import get
from tests.attack.mutate import damage_json, replace_by_oddity

LABELLING = Labelling(
    on="LGE",
    ours={0: 0, 200: 1, 500: 2, 600: 3},
    classes={"lv": (1,), "myocardium": (2, 3), "scar": (3,)},
)
STORED = (0, 200, 500, 600)


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def oblique(step=1.5, shift=0.0):
    angle = torch.tensor(0.3, dtype=torch.float64)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:2, :2] = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    matrix[:3, :3] *= torch.tensor([step, step, 8])
    matrix[:3, 3] = torch.tensor([-70 + shift, 20.25, -301])
    return matrix


def make_case(folder, name, *, labelled=True, t2_shift=0.0, seed=0, shape=(6, 5, 3), dtype="int16"):
    """A case of two images and a mask whose values are those of MS-CMRSeg."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for sequence, shift in (("LGE", 0.0), ("T2", t2_shift)):
        values = torch.randint(-900, 900, (1, *shape), generator=generator)
        images[sequence] = folder / f"{name}_{sequence}.nii.gz"
        write_nifti(
            images[sequence], Volume(values.to(getattr(torch, dtype)), oblique(shift=shift))
        )
    stored = torch.tensor(STORED, dtype=torch.int16)
    values = stored[torch.randint(0, 4, (1, *shape), generator=generator)]
    label = folder / f"{name}_manual.nii"
    write_nifti(label, Volume(values, oblique()))
    return Case(name, images, {"LGE": label} if labelled else {}, {"LGE": LABELLING})


def write(cases, out, **changes):
    options = {"images": ("LGE", "T2"), "label": "LGE", "number": 7, "name": "Scar"}
    return write_nnunet(cases, out, **{**options, **changes})


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(["uint8", "int16", "int32", "float32", "float64"]),
    structures=st.permutations(["lv", "scar"]).map(lambda rest: ("myocardium", *rest)),
)
def test_voxels_geometry_and_labels_come_back(tmp_path_factory, shape, seed, dtype, structures):
    folder = tmp_path_factory.mktemp("round")
    case = make_case(folder / "in", "p_1", seed=seed, shape=shape, dtype=dtype)
    root = write([case], folder, structures=structures)
    (found,) = read_nnunet(root)
    assert (found.name, tuple(found.images), found.check()) == ("p_1", ("LGE", "T2"), [])
    for sequence in ("LGE", "T2"):
        before, after = case.image(sequence), found.image(sequence)
        assert after.data.dtype == before.data.dtype
        assert torch.equal(after.data, before.data)
        assert torch.equal(after.world_from_vox, case.image("LGE").world_from_vox)
    label, labelling = found.label("LGE"), found.labelling["LGE"]
    assert labelling.classes == {name: (n,) for n, name in enumerate(structures, start=1)}
    original = case.label("LGE")
    for name in ("lv", "scar"):
        expected = LABELLING.mask(original, name).data
        assert torch.equal(labelling.mask(label, name).data, expected)
    assert torch.equal(labelling.mask(label, "myocardium").data, original.data == 2)
    again = write([found], folder / "again", structures=None)
    for path in sorted(root.rglob("*.nii.gz")):
        assert path.read_bytes() == (again / path.relative_to(root)).read_bytes()


@pytest.mark.parametrize(
    ("layout", "images", "label", "structures"),
    [
        ("emidec", ("LGE",), "LGE", ["lv", "myocardium", "scar", "no_reflow"]),
        ("myops", ("C0", "LGE", "T2"), "LGE", ["lv", "myocardium", "rv", "edema", "scar"]),
        ("msseg2", ("earlier", "later"), "consensus", ["new_lesion"]),
        ("mscmrseg", ("LGE",), "LGE", ["lv", "myocardium", "rv"]),
        ("t1_lge", ("lge",), "lge_lesion", ["lesion"]),
    ],
)
def test_every_kind_of_data_set_is_written(tmp_path, layout, images, label, structures):
    patients = open_dataset(layout, write_phantoms(layout, tmp_path / "in", cases=3, shrink=4))
    train = [case for case in patients if label in case.labels][:2]
    test = [case for case in patients if case not in train]
    root = write(train, tmp_path, images=images, label=label, test=test)
    found = open_dataset("nnunet", root)
    assert set(found.names) == set(patients.names)
    assert {case.name: case.info["set"] for case in found} == {
        case.name: "training" if case in train else "test" for case in patients
    }
    content = json.loads((root / "dataset.json").read_text())
    assert content["labels"] == {s: n for n, s in enumerate(["background", *structures])}
    assert content["numTraining"] == len(train)
    assert tuple(content["channel_names"].values()) == images
    for case in found:
        before = patients.subset([case.name])[0]
        assert set(case.labels) == ({images[0]} if label in before.labels else set())
        for sequence in images:
            assert torch.equal(case.image(sequence).data, before.image(sequence).data)


def test_an_image_on_another_grid_is_refused_or_resampled(tmp_path):
    case = make_case(tmp_path / "in", "p", t2_shift=0.75)
    with pytest.raises(FileError, match=r"p_T2.nii.gz must lie on the grid of LGE; resample_"):
        write([case], tmp_path / "refused")
    assert not (tmp_path / "refused/Dataset007_Scar/dataset.json").exists()
    root = write([case], tmp_path, resample_images=True)
    image, before = read_nnunet(root)[0].image("T2"), case.image("T2")
    assert image.data.dtype == torch.float32
    assert image.shares_grid(case.image("LGE"))
    # half a voxel along world x
    inner = image.data[0, 1:-1, 1:-1]
    assert before.data.min() <= inner.min() <= inner.max() <= before.data.max()
    assert not torch.equal(inner, before.data[0, 1:-1, 1:-1].float())


def test_regions_channels_and_the_ignored_label_are_read(tmp_path):
    root = write([make_case(tmp_path / "in", "p")], tmp_path)
    path = root / "dataset.json"
    content = json.loads(path.read_text())
    content["channel_names"] = {"0": "FLAIR", "1": "FLAIR"}
    content["labels"] = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    path.write_text(json.dumps(content | {"regions_class_order": [1, 2], "licence": "CC0"}))
    (case,) = read_nnunet(root)
    assert tuple(case.images) == ("FLAIR 0", "FLAIR 1")
    label, labelling = case.label("FLAIR 0"), case.labelling["FLAIR 0"]
    assert labelling.classes == {"whole": (1, 2), "core": (2,), "ignore": (3,)}
    whole = labelling.mask(label, "whole").data
    assert torch.equal(whole, (label.data == 1) | (label.data == 2))


def test_what_is_missing_is_reported_and_the_rest_read(tmp_path):
    cases = [make_case(tmp_path / "in", name) for name in ("a", "b", "c")]
    root = write(cases, tmp_path, test=[make_case(tmp_path / "in", "d", labelled=False)])
    (root / "imagesTr/a_0001.nii.gz").unlink()
    (root / "labelsTr/b.nii.gz").unlink()
    (root / "labelsTr/notes.txt").write_text("x")
    put_aside = root / "labelsTr/e.nii.gz"
    put_aside.write_bytes((root / "labelsTr/c.nii.gz").read_bytes())
    found = read_nnunet(root)
    assert found.faults == [
        "a: T2 image is missing",
        "b: LGE label is missing",
        "d: LGE label is missing",
        "e: LGE image is missing",
        "e: T2 image is missing",
    ]
    (root / "imagesTr/b_0000.nii.gz").unlink()
    (root / "imagesTr/b_0001.nii.gz").unlink()
    with pytest.raises(FileError, match="numTraining is 3; imagesTr holds 2 cases"):
        read_nnunet(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel_names": {}}, "channel_names must name at least one channel"),
        ({"channel_names": {"0": "LGE", "2": "T2"}}, "channel_names: 1 is missing"),
        ({"channel_names": {"0": "T 1", "1": "T", "2": "T"}}, "must be distinct once repeated"),
        ({"channel_names": ["LGE"]}, "channel_names must be an object; it is a list"),
        ({"labels": {"scar": 1}}, "labels: background is missing"),
        ({"labels": {"background": 1}}, "labels: background must be 0"),
        ({"labels": {"background": 0, "scar": 256}}, "labels: scar must have values from 0 to 255"),
        ({"labels": {"background": 0, "scar": []}}, "labels: scar must have values from 0 to 255"),
        ({"labels": {"background": 0, "scar": [True]}}, "labels: scar must have values"),
        ({"labels": {"background": 0, "scar": "1"}}, "labels: scar must be a whole number or a li"),
        ({"file_ending": ".mha"}, r"file_ending must be .nii.gz or .nii; it is '.mha'"),
        ({"numTraining": "1"}, "numTraining must be a whole number; it is text"),
        ({"dataset": {}}, "it lists files, which is not supported"),
    ],
)
def test_a_wrong_description_is_named(tmp_path, change, message):
    root = write([make_case(tmp_path / "in", "p")], tmp_path)
    path = root / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FileError, match=f"read_nnunet: .*dataset.json: .*{message}"):
        read_nnunet(root)


def test_training_and_test_cases_have_different_names(tmp_path):
    case = make_case(tmp_path / "in", "p")
    root = write([case], tmp_path)
    (root / "imagesTs").mkdir()
    (root / "imagesTs/p_0000.nii.gz").write_bytes((root / "imagesTr/p_0000.nii.gz").read_bytes())
    with pytest.raises(FileError, match="must have different names; in both: p"):
        read_nnunet(root)
    with pytest.raises(ValueError, match="cases must have different names; got p"):
        write([case], tmp_path, test=[case], number=8)


def test_a_damaged_description_raises_only_file_errors(tmp_path):
    root = write([make_case(tmp_path / "in", "p")], tmp_path)
    path = root / "dataset.json"
    content = json.loads(path.read_text())
    numbers = random.Random(0)
    refused = 0
    for _ in range(600):
        path.write_text(json.dumps(damage_json(numbers, content)))
        try:
            for case in read_nnunet(root):
                case.check()
                for key in case.labels:
                    case.label(key)
        except FileError:
            refused += 1
    assert 200 < refused < 600
    for seed in range(40):
        path.unlink(missing_ok=True)
        path.write_text(json.dumps(content))
        replace_by_oddity(random.Random(seed), path)
        with pytest.raises(FileError, match="read_nnunet: "):
            read_nnunet(root)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ()}, r"images must be distinct sequences; got \(\)"),
        ({"images": "LGE"}, "images must be distinct sequences; got 'LGE'"),
        ({"images": ("T2", "T2")}, "images must be distinct sequences"),
        ({"number": 1000}, "number must be 1 to 999; got 1000"),
        ({"name": "a b"}, "name must consist of letters, digits and underscores; got 'a b'"),
        ({"structures": ("edema",)}, "structures must be different ones of lv, myocardium, scar"),
        ({"structures": ()}, "structures must be different ones of lv"),
        ({"structures": ("scar", "myocardium")}, "scar is hidden by those after it"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, changes, message):
    case = make_case(tmp_path / "in", "p")
    with pytest.raises(ValueError, match=f"write_nnunet: .*{message}"):
        write([case], tmp_path, **changes)
    assert not list(tmp_path.glob("Dataset*"))


def test_what_cannot_be_written_is_named(tmp_path):
    case = make_case(tmp_path / "in", "p")
    with pytest.raises(ValueError, match="cases must hold at least one training case"):
        write([], tmp_path)
    with pytest.raises(FileError, match="p has no C0 image; it has LGE, T2"):
        write([case], tmp_path, images=("C0",))
    with pytest.raises(FileError, match="d has no LGE label; it has none"):
        write([make_case(tmp_path / "in", "d", labelled=False)], tmp_path)
    with pytest.raises(ValueError, match=r"'\.\./p' cannot be the start of a file name"):
        write([Case("../p", case.images, case.labels, case.labelling)], tmp_path)
    write([case], tmp_path)
    with pytest.raises(FileError, match="Dataset007_Scar is not empty; remove it"):
        write([case], tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="Not a directory"):
        write([case], tmp_path / "file")


def test_a_method_trains_on_it(tmp_path):
    """joint_scar takes LGE with masks of myocardium and scar, as regions describe them."""
    phantoms = write_phantoms("emidec", tmp_path / "in", cases=1, shrink=4)
    patients = open_dataset("emidec", phantoms)
    root = write(patients, tmp_path, images=("LGE",))
    path = root / "dataset.json"
    content = json.loads(path.read_text())
    content["labels"] |= {"myocardium": [2, 3, 4], "scar": [3, 4]}
    path.write_text(json.dumps(content))
    method = get("joint_scar")
    config, recipe = method.configure({"image": 32})
    tasks = [
        method.task(config, recipe).feed(cases, seed=0) for cases in (patients, read_nnunet(root))
    ]
    first, second = (feed.batch(0, torch.arange(len(feed))) for feed in tasks)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])


def test_a_folder_of_images_has_its_own_cases_only(tmp_path):
    cases = [make_case(tmp_path / "in", name) for name in ("a", "b")]
    root = write(cases[:1], tmp_path, test=cases[1:])
    assert read_nnunet(root).names == ("a", "b")
    assert read_nnunet(root / "imagesTr").names == read_nnunet(root / "labelsTr").names == ("a",)
    assert read_nnunet(root / "imagesTs").names == ("b",)


def test_images_without_a_description(tmp_path):
    root = write([make_case(tmp_path / "in", "a")], tmp_path)
    bare = root / "imagesTr"
    assert [*read_channels(bare, ["one", "two"])[0].images] == ["one", "two"]
    assert [*read_channels(bare, ["one"])[0].images] == ["one"]
    case = read_channels(bare, ["one"], described_by=root)[0]
    assert [*case.images] == ["LGE", "T2"]
    assert case.labelling == read_nnunet(root)[0].labelling
    with pytest.raises(FileError, match=r"read_channels: .*in holds no case of nnunet; it should"):
        read_channels(tmp_path / "in", ["one"])


def test_nnunet_finds_no_fault(tmp_path):
    pytest.importorskip("nnunetv2")
    cases = [make_case(tmp_path / "in", f"p{n}", seed=n, t2_shift=n / 2) for n in range(2)]
    root = write(cases, tmp_path, resample_images=True)
    script = (
        "import sys; from nnunetv2.experiment_planning.verify_dataset_integrity import "
        "verify_dataset_integrity; verify_dataset_integrity(sys.argv[1], 1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(root)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "most likely OK" in done.stdout
    assert "rror:" not in done.stdout
    assert "Warning" not in done.stdout
    import SimpleITK

    stored = SimpleITK.ReadImage(str(root / "imagesTr/p0_0000.nii.gz"))
    read = read_nifti(cases[0].images["LGE"])
    voxels = SimpleITK.GetArrayFromImage(stored).transpose(2, 1, 0)
    assert np.array_equal(voxels, read.data[0].numpy())

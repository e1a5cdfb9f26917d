"""Data sets: tiny trees in every published layout, and real folders."""

import json
import os
import shutil

import pytest
import torch

from cmrfast import FileError
from cmrfast.data import Volume, open_dataset, write_nifti
from cmrfast.data.datasets import LAYOUTS
from cmrfast.data.datasets.layout import Draft, natural_key, read_pairs


def put(path, values=(0,), *, step=1.0, dtype=torch.int16):
    """A tiny image at a path, which holds the given values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = torch.tensor(values, dtype=dtype).view(1, -1, 1, 1)
    write_nifti(path, Volume(data, torch.diag(torch.tensor([step, step, 5, 1]))))


def mscmrseg(root):
    inner, after = root / "C0LET2_nii45_for_challenge19", root / "C0LET2_gt_for_challenge19"
    stored = (0, 200, 500, 600)
    for n in (1, 2, 10, 36):
        for step, sequence in enumerate(("C0", "T2", "LGE"), start=1):
            put(inner / f"c0t2lge/patient{n}_{sequence}.nii.gz", range(4), step=step)
            folder = inner / f"{sequence.lower()}gt"
            if n == 36:
                name = "LGE_manual_35_TestData" if sequence == "LGE" else f"{sequence}_manual_10"
                folder = after / name
            elif n == 10 and sequence == "LGE":
                continue
            put(folder / f"patient{n}_{sequence}_manual.nii{'.gz' * (n > 1)}", stored, step=step)


def myops(root):
    for n in (101, 102):
        for sequence in ("C0", "DE", "T2"):
            put(root / f"train25/myops_training_{n}_{sequence}.nii.gz", range(6))
        stored = (0, 500, 200, 600, 1220, 2221)
        put(root / f"train25_myops_gd/myops_training_{n}_gd.nii.gz", stored)
    put(root / "test20/myops_test_201_DE.nii.gz")
    (root / "MyoPS2020_EvaluateByYouself").mkdir()
    put(root / "MyoPS2020_EvaluateByYouself/myops_test_201_gdencrypt.nii.gz")


def emidec(root):
    top = root / "emidec-dataset-1.0.1"
    for case in ("Case_N006", "Case_P001", "Case_M010"):
        put(top / case / "Images" / f"{case}.nii.gz", range(5), dtype=torch.float64)
        put(top / case / "Contours" / f"{case}.nii.gz", range(5), dtype=torch.float64)
    (top / "Case N006.txt").write_text("Sex : F\nAge: 61\nFEVG : 55.5\nno colon\n")
    (top / "Readme.txt").write_text("hello")


def acdc(root):
    for patient, ed, es in (("patient001", 1, 12), ("patient090", 11, 4)):
        folder = root / "database/training" / patient
        put(folder / f"{patient}_4d.nii.gz", range(4))
        for n, frame in enumerate((ed, es)):
            put(folder / f"{patient}_frame{frame:02d}.nii.gz", range(4), step=n + 1.0)
            put(folder / f"{patient}_frame{frame:02d}_gt.nii.gz", (0, 1, 2, 3), step=n + 1.0)
        (folder / "Info.cfg").write_text(f"ED: {ed}\nES: {es}\nGroup: DCM\nNbFrame: 30\n")
        (folder / "MANDATORY_CITATION.md").write_text("cite")
    (root / "database/MANDATORY_CITATION.md").write_text("cite")


def msseg2(root):
    for case in ("013", "100"):
        for time in (1, 2):
            put(root / case / f"flair_time0{time}_on_middle_space.nii.gz", (5, 6))
        for name in ("", "_expert1", "_expert2", "_expert3", "_expert4"):
            put(root / case / f"ground_truth{name}.nii.gz", (0, 1))


def open_ms(root):
    for kind in ("coregistered", "raw"):
        for case in ("patient02", "patient11"):
            folder = root / "longitudinal" / kind / case
            for study in (1, 2):
                for contrast in ("FLAIR", "T1W", "T2W"):
                    put(folder / f"study{study}_{contrast}.nii.gz", (5, 6))
            put(folder / "gt.nii.gz", (0, 1))
            if kind == "coregistered":
                put(folder / "brainmask.nii.gz", (0, 1))
    put(root / "cross_sectional/coregistered/patient01/brainmask.nii.gz")
    info = "patient_id,sex,days_between_studies,age,ms_type\n02,F,203,20,\n11,M,81,19,RR\n"
    (root / "longitudinal/patient_info.csv").write_text(info)


def t1_lge(root):
    for subject in ("s01", "s02"):
        for image, step in (("t1", 1.5), ("lge", 1.0)):
            put(root / subject / f"{image}.nii.gz", (9, 9), step=step)
            put(root / subject / f"{image}_myocardium.nii.gz", (0, 1), step=step)
    put(root / "s02/lge_lesion.nii", (0, 1))


def nnunet(root):
    for kind, names in (("Tr", ("case_2", "case_10")), ("Ts", ("late",))):
        for name in names:
            for channel in (0, 1):
                put(root / f"images{kind}/{name}_{channel:04d}.nii.gz", (5, 6, 7))
            put(root / f"labels{kind}/{name}.nii.gz", (0, 1, 2), dtype=torch.uint8)
    labels = {"background": 0, "heart": [1, 2], "scar": 2}
    content = {"channel_names": {"0": "LGE", "1": "T2"}, "labels": labels, "numTraining": 2}
    (root / "dataset.json").write_text(json.dumps(content | {"file_ending": ".nii.gz"}))


def table(root):
    for case in ("p2", "p10"):
        put(root / "images" / case / "lge.nii.gz", (5, 6, 7))
        put(root / "masks" / f"{case}.nii.gz", (0, 1, 1))
    put(root / "masks" / "p10_wall.nii.gz", (0, 1, 0))
    (root / "cases.csv").write_text(
        "case,LGE,scar,LGE_myocardium,split,age\n"
        "p10,images/p10/lge.nii.gz,masks/p10.nii.gz,masks/p10_wall.nii.gz,test,61\n"
        "p2,images/p2/lge.nii.gz,masks/p2.nii.gz,,train,\n"
    )


def bids(root):
    for subject, session in (("2", ""), ("10", "1"), ("10", "2")):
        place = f"ses-{session}_" if session else ""
        folder = root / f"sub-{subject}" / place.rstrip("_") / "anat"
        put(folder / f"sub-{subject}_{place}FLAIR.nii.gz", (5, 6, 7))
        put(folder / f"sub-{subject}_{place}desc-brain_mask.nii.gz", (0, 1, 1))
    put(root / "derivatives/manual/sub-2/anat/sub-2_dseg.nii.gz", (0, 1, 3))
    put(root / "derivatives/manual/sub-2/anat/sub-2_label-x_probseg.nii.gz", (0, 1, 3))
    (root / "derivatives/dseg.tsv").write_text("index\tname\n1\tLV\n3\tscar\n")
    (root / "dataset_description.json").write_text("{}")


TREES = {
    "mscmrseg": (mscmrseg, ("patient1", "patient2", "patient10", "patient36")),
    "myops": (myops, ("myops_test_201", "myops_training_101", "myops_training_102")),
    "emidec": (emidec, ("Case_M010", "Case_N006", "Case_P001")),
    "acdc": (acdc, ("patient001", "patient090")),
    "msseg2": (msseg2, ("013", "100")),
    "open_ms": (open_ms, ("patient02", "patient11")),
    "t1_lge": (t1_lge, ("s01", "s02")),
    "nnunet": (nnunet, ("case_2", "case_10", "late")),
    "table": (table, ("p2", "p10")),
    "bids": (bids, ("sub-2", "sub-10")),
}
every_set = pytest.mark.parametrize("name", TREES)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)

    def make(name):
        root = tmp_path / name
        root.mkdir()
        TREES[name][0](root)
        return root

    return make


def test_every_layout_has_a_tree():
    assert set(TREES) == set(LAYOUTS)


@every_set
def test_cases_are_found_in_order_and_nothing_is_read(tree, name, monkeypatch):
    root = tree(name)
    for reader in ("read_header", "read_volume"):
        monkeypatch.setattr(f"cmrfast.data.datasets.case.{reader}", None)
    dataset = open_dataset(name, root)
    assert dataset.names == TREES[name][1]
    assert [case.name for case in dataset] == list(dataset.names)
    assert len(dataset) == len(dataset[:]) == len(dataset.names)


@every_set
def test_every_file_is_readable_and_on_its_grid(tree, name):
    for case in open_dataset(name, tree(name)):
        assert case.check() == list(case.faults)
        for sequence in case.images:
            assert case.image(sequence).channels == 1
        for key in case.labels:
            assert case.label(key).data.dtype == torch.uint8
            assert case.label(key).shares_grid(case.image(case.labelling[key].on))


@pytest.mark.parametrize("name", [name for name in TREES if name not in ("table", "bids")])
def test_the_root_may_be_any_level(tree, name):
    root = tree(name)
    whole = {case.name: case for case in open_dataset(name, root)}
    levels = {path.parent for case in whole.values() for path in case.images.values()}
    levels |= {level.parent for level in levels}
    for level in sorted(levels):
        for case in open_dataset(name, level):
            assert case.images == whole[case.name].images
            assert case.labels == whole[case.name].labels
            assert case.info == whole[case.name].info


@pytest.mark.parametrize(
    ("name", "case", "label", "values"),
    [
        ("mscmrseg", "patient1", "LGE", [0, 2, 1, 3]),
        ("myops", "myops_training_101", "LGE", [0, 1, 2, 3, 4, 5]),
        ("emidec", "Case_N006", "LGE", [0, 1, 2, 3, 4]),
        ("acdc", "patient001", "ED", [0, 3, 2, 1]),
        ("msseg2", "013", "rater4", [0, 1]),
        ("open_ms", "patient11", "brain", [0, 1]),
        ("t1_lge", "s02", "lge_lesion", [0, 1]),
        ("nnunet", "late", "LGE", [0, 1, 2]),
    ],
)
def test_labels_are_remapped(tree, name, case, label, values):
    (found,) = open_dataset(name, tree(name)).subset([case])
    assert found.label(label).data.flatten().tolist() == values


def test_scar_is_part_of_the_myocardium(tree):
    case = open_dataset("myops", tree("myops"))[1]
    label, labelling = case.label("LGE"), case.labelling["LGE"]
    counts = {n: int(labelling.mask(label, n).data.sum()) for n in labelling.classes}
    assert counts == {"lv": 1, "myocardium": 3, "rv": 1, "edema": 2, "scar": 1}
    with pytest.raises(ValueError, match=r"mask: name must be one of lv, .*; got 'atrium'"):
        labelling.mask(label, "atrium")


def test_missing_parts_are_named(tree):
    root = tree("mscmrseg")
    assert open_dataset("mscmrseg", root).faults == ["patient10: LGE label is missing"]
    faults = open_dataset("myops", tree("myops")).faults
    assert faults == [
        "myops_test_201: C0 image is missing",
        "myops_test_201: T2 image is missing",
        "myops_test_201: LGE label is missing",
    ]
    case = open_dataset("mscmrseg", root)[2]
    with pytest.raises(FileError, match="label: patient10 has no LGE label; it has C0, T2"):
        case.label("LGE")


def test_ed_is_what_info_says_and_not_the_smaller(tree):
    case = open_dataset("acdc", tree("acdc"))[1]
    assert case.images["ED"].name == "patient090_frame11.nii.gz"
    assert case.labels["ES"].name == "patient090_frame04_gt.nii.gz"
    assert case.info["Group"] == "DCM"


@pytest.mark.parametrize("number", ["../../secret", "", "1e3", "-1", "99999"])
def test_a_frame_number_never_becomes_a_path(tree, number):
    root = tree("acdc")
    info = root / "database/training/patient001/Info.cfg"
    info.write_text(f"ED: {number}\nES: 12\n")
    case = open_dataset("acdc", root)[0]
    assert set(case.images) == {"4d", "ES"}
    assert f"Info.cfg must give ED as a frame number; got {number!r}" in case.faults


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_text_file_that_is_no_file(tmp_path, kind):
    path, draft = tmp_path / "Info.cfg", Draft("patient001")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    assert read_pairs(path, ":", draft) == {}
    (fault,) = draft.faults
    assert fault.startswith(f"{path}: ")
    assert "None" not in fault


def test_text_files_become_info(tree):
    by_name = {case.name: case for case in open_dataset("emidec", tree("emidec"))}
    assert by_name["Case_N006"].info == {"Sex": "F", "Age": "61", "FEVG": "55.5"}
    patient = open_dataset("open_ms", tree("open_ms"))[1]
    info = {"sex": "M", "days_between_studies": "81", "age": "19", "ms_type": "RR"}
    assert patient.info == info


def test_odd_things_are_named(tree):
    root = tree("t1_lge")
    put(root / "s01/t1.nii")
    put(root / "s01/lge_myocardium.nii.gz", (0, 1), step=1.1)
    (root / "s02/lge.nii.gz").write_bytes(b"nothing")
    first, second = open_dataset("t1_lge", root)
    assert first.images["t1"].name == "t1.nii"
    assert first.faults == (f"t1 image occurs twice; {root}/s01/t1.nii.gz is not used",)
    assert "lge_myocardium label does not lie on the grid of lge" in first.check()
    assert any("lge.nii.gz is not a NIfTI file" in fault for fault in second.check())


def test_a_value_that_no_label_has(tree):
    root = tree("mscmrseg")
    path = root / "C0LET2_nii45_for_challenge19/c0gt/patient2_C0_manual.nii.gz"
    for dtype in (torch.int16, torch.uint8):  # in uint8, 500 is 244
        put(path, (0, 200, 244), dtype=dtype)
        case = open_dataset("mscmrseg", root)[1]
        with pytest.raises(FileError, match=r"patient2_C0_manual.nii.gz holds the value 244; C0 m"):
            case.label("C0")


@pytest.mark.parametrize("name", ["emidec", "acdc", "msseg2", "open_ms", "t1_lge"])
def test_two_folders_of_one_name_are_not_one_case(tree, name):
    root = tree(name)
    first = next(path for path in sorted(root.rglob("*")) if path.name == TREES[name][1][0])
    second = root / "site2" / first.name
    shutil.copytree(first, second)
    with pytest.raises(FileError, match=r"^open_dataset: .* have the name of one case; rename one"):
        open_dataset(name, root)
    shutil.rmtree(first)
    assert len(open_dataset(name, root)) == len(TREES[name][1])


def test_the_order_of_numbers_with_zeros_is_fixed():
    names = ["case_1", "case_01", "case_001", "case_2", "case_10", "case"]
    ordered = ["case", "case_001", "case_01", "case_1", "case_2", "case_10"]
    for given in (names, list(reversed(names))):
        assert sorted(given, key=natural_key) == ordered


def test_myops_successors(tmp_path):
    for sequence in ("LGE", "gd"):
        put(tmp_path / f"Case0007/Case0007_{sequence}.nii.gz")
    (case,) = open_dataset("myops", tmp_path)
    assert (case.name, set(case.images), set(case.labels)) == ("Case0007", {"LGE"}, {"LGE"})


def test_links_are_followed_once(tree, tmp_path):
    root = tree("msseg2")
    elsewhere = tmp_path / "elsewhere"
    (root / "100").rename(elsewhere)
    (root / "100").symlink_to(elsewhere)
    (root / "013/loop").symlink_to(root)
    (root / "dangling").symlink_to(root / "nowhere")
    dataset = open_dataset("msseg2", root)
    assert dataset.names == ("013", "100")
    assert not dataset.faults


@every_set
def test_nothing_of_the_kind(tmp_path, name):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileError, match=f"holds no case of {name}; it should hold files such as"):
        open_dataset(name, tmp_path)
    with pytest.raises(FileError, match="is not a folder"):
        open_dataset(name, tmp_path / "notes.txt")


def test_unknown_names(tree):
    with pytest.raises(ValueError, match=r"open_dataset: name must be one of mscmrseg, .*'brats'"):
        open_dataset("brats", ".")
    with pytest.raises(FileError, match=r"subset: every name must be a case of msseg2 .*: 7, 8"):
        open_dataset("msseg2", tree("msseg2")).subset(["013", "7", "8"])


@pytest.mark.parametrize(
    ("name", "folder", "names"),
    [
        ("emidec", "emidec_samples", ("samplePositive",)),
        ("acdc", "sunnybrook_cine", ("SCD0000101", "SCD0000201")),
        ("open_ms", "open_ms_longitudinal", ("patient01", "patient12")),
    ],
)
def test_real_folders(real_images, name, folder, names):
    dataset = open_dataset(name, real_images / folder)
    assert dataset.names == names
    for case in dataset:
        assert all("sform steps" in fault for fault in case.check())
        for key, labelling in case.labelling.items():
            label = case.label(key)
            assert label.shares_grid(case.image(labelling.on))
            assert label.data.any()


def test_real_emidec_spacing_and_no_reflow(real_images):
    case = open_dataset("emidec", real_images / "emidec_samples")[0]
    label, labelling = case.label("LGE"), case.labelling["LGE"]
    assert label.spacing_mm == (1.40625, 1.40625, 13)
    assert int(labelling.mask(label, "no_reflow").data.sum()) == 29
    assert int(labelling.mask(label, "scar").data.sum()) == 759 + 29

"""Every method on data of one's own: the same patients in any layout give the same cases."""

import csv
import json
import shutil

import pytest
import torch

from cmrfast import FileError
from cmrfast.data.datasets import (
    LAYOUTS,
    Split,
    guess_cases,
    open_dataset,
    recognise,
    write_nnunet,
    write_table,
)
from cmrfast.data.phantom import write_phantoms
from cmrfast.methods import case_of_files, get, open_cases, trainable
from cmrfast.methods.describe import describe
from cmrfast.models import MODELS
from cmrfast.train.plan import choose_split

HEART = {"lv": (500,), "myocardium": (200,), "rv": (600,)}
#: Method → the values of structures in the phantoms' files, where their names do not say them.
VALUES = {
    "joint_scar": {"myocardium": (2,), "scar": (3, 4)},
    "joint_registration": HEART,
    "adversarial_transfer": HEART,
}


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    """Phantoms in a method's own layout, made once."""
    made = {}

    def make(name):
        layout = get(name).datasets[0]
        if layout not in made:
            folder = tmp_path_factory.mktemp(layout)
            cases = 3 if layout == "emidec" else 1
            made[layout] = write_phantoms(layout, folder / "data", cases=cases, shrink=4)
        return made[layout]

    return make


def same(name, first, second):
    """Cases that a method cannot tell apart: images, and masks of every structure."""
    needs = get(name).needs
    assert len(first) == len(second)
    for case, other in zip(first, second, strict=True):
        for key in {*needs.images} & case.images.keys():
            assert torch.equal(case.image(key).data, other.image(key).data)
        assert {*needs.masks} & case.labels.keys() == {*needs.masks} & other.labels.keys()
        for key in {*needs.masks} & case.labels.keys():
            label, found = case.label(key), other.label(key)
            if VALUES.get(name) is HEART:  # these methods use the values themselves
                assert torch.equal(label.data, found.data)
            for structure in needs.masks[key].structures:
                mask = case.labelling[key].mask(label, structure).data
                assert mask.any() or structure in ("scar", "new_lesion", "lesion")
                assert torch.equal(mask, other.labelling[key].mask(found, structure).data)


@pytest.mark.parametrize("name", MODELS)
def test_a_table_gives_the_cases_of_the_method_s_layout(name, patients, tmp_path):
    method, root = get(name), patients(name)
    own = open_dataset(method.datasets[0], root)
    write_table(own.cases, tmp_path / "cases.csv")
    dataset = open_cases(method, tmp_path, values=VALUES.get(name))
    assert (dataset.name, dataset.names) == ("table", own.names)
    same(name, own, dataset)


def as_bids(root, cases, suffixes, structures, *, folder="anat"):
    """Copies files: sequence → suffix with its entities, label → the end of the name."""
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    for number, case in enumerate(cases, start=1):
        for files, ends in ((case.images, suffixes), (case.labels, structures)):
            for key, end in ends.items():
                session = f"ses-{end.split()[0]}/" if " " in end else ""
                name = f"sub-{number}_" + (f"{session[:-1]}_" if session else "") + end.split()[-1]
                target = root / f"sub-{number}" / session / folder / f"{name}.nii.gz"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(files[key], target)
    return root


def test_bids_with_two_sessions(patients, tmp_path):
    own = open_dataset("msseg2", patients("new_lesions"))
    suffixes = {"earlier": "1 FLAIR", "later": "2 FLAIR"}
    labels = {"consensus": "2 label-newlesion_mask"}
    labels |= {f"rater{n}": f"2 desc-rater{n}_mask" for n in range(1, 5)}
    root = as_bids(tmp_path / "bids", own, suffixes, labels)
    dataset = open_cases(get("new_lesions"), root)
    assert dataset.names == ("sub-1",)
    same("new_lesions", own, dataset)


def test_bids_with_named_values_in_a_derivative(patients, tmp_path):
    own = open_dataset("emidec", patients("joint_scar"))
    root = as_bids(tmp_path / "bids", own, {"LGE": "LGE"}, {})
    derived = as_bids(tmp_path / "made", own, {}, {"LGE": "dseg"})
    (root / "derivatives").mkdir()
    derived.rename(root / "derivatives" / "manual")
    method = get("joint_scar")
    with pytest.raises(FileError, match=r"labels: label \(values without names: give them"):
        trainable(method, open_cases(method, root))
    table = root / "derivatives" / "manual" / "dseg.tsv"
    table.write_text("index\tname\n1\tLV\n2\tMyocardium\n3\tScar\n4\tNo-reflow\n")
    same("joint_scar", own, open_cases(method, root))


def test_nnunet_with_two_visits(patients, tmp_path):
    own = open_dataset("msseg2", patients("new_lesions"))
    root = write_nnunet(
        own, tmp_path, images=["earlier", "later"], label="consensus", number=1, name="New"
    )
    path = root / "dataset.json"
    content = json.loads(path.read_text())
    content["channel_names"] = {"0": "FLAIR", "1": "FLAIR"}
    path.write_text(json.dumps(content))
    dataset = open_cases(get("new_lesions"), root)
    for case, other in zip(dataset, own, strict=True):
        assert torch.equal(case.image("earlier").data, other.image("earlier").data)
        assert torch.equal(case.label("consensus").data, other.label("consensus").data)


def separate(case, folder):
    """One file a structure: the wall without its scar, the infarct and the no-reflow zone."""
    from cmrfast.data import write_nifti

    label = case.label("LGE")
    files = {}
    for value, name in {2: "Myocardium", 3: "scar", 4: "MVO"}.items():
        files[name] = folder / f"{case.name}_{name}.nii.gz"
        write_nifti(files[name], label.with_data((label.data == value).byte()))
    return files


def test_a_column_for_each_structure(patients, tmp_path):
    own = open_dataset("emidec", patients("joint_scar"))
    rows = [["case", "lge", "Myocardium", "scar", "MVO", "age"]]
    for case in own:
        files = separate(case, tmp_path)
        rows.append([case.name, case.images["LGE"], *(path.name for path in files.values()), 61])
    with (tmp_path / "cases.csv").open("w") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    dataset = open_cases(get("joint_scar"), tmp_path)
    assert dataset[0].info == {"age": "61"}
    same("joint_scar", own, dataset)
    task = get("joint_scar").task(*get("joint_scar").configure({}))
    files = task.files(dataset[0])
    assert list(files) == ["image LGE", "label LGE", "label LGE: scar", "label LGE: MVO"]


def test_what_a_table_lacks_is_named(patients, tmp_path):
    own = open_dataset("emidec", patients("joint_scar"))
    write_table(own.cases, tmp_path / "cases.csv")
    (tmp_path / "cases.csv").write_text(
        (tmp_path / "cases.csv").read_text().replace(",LGE,", ",T2,")
    )
    with pytest.raises(FileError) as error:
        trainable(get("joint_scar"), open_cases(get("joint_scar"), tmp_path))
    assert str(error.value) == (
        f"train: no case of {tmp_path} (table) has all that joint_scar takes; missing: LGE image, "
        "LGE label (myocardium, scar); images there: T2; labels: LGE_label (values without "
        "names: give them as labels)"
    )
    with pytest.raises(ValueError, match="labels: structures are myocardium, scar; got edema"):
        open_cases(get("joint_scar"), tmp_path, values={"edema": (1,)})


def test_the_split_of_a_table_is_kept(patients, tmp_path):
    own = open_dataset("emidec", patients("joint_scar"))
    write_table(own.cases, tmp_path / "cases.csv")
    lines = (tmp_path / "cases.csv").read_text().splitlines()
    parts = ("", "Test", "Train", "val")
    text = "\n".join(line + part for line, part in zip(lines, parts, strict=True))
    (tmp_path / "cases.csv").write_text(text)
    method = get("joint_scar")
    layout, split = choose_split(method, tmp_path, method.recipe(), 0, labels=VALUES["joint_scar"])
    first, second, third = ((name,) for name in own.names)
    assert (layout, split) == ("table", Split(second, third, first))


def test_nnunet_s_test_cases_are_tested(patients, tmp_path):
    root = write_phantoms("emidec", tmp_path / "data", cases=5, shrink=4)
    own = open_dataset("emidec", root)
    kept = {"images": ["LGE"], "label": "LGE", "number": 1, "name": "Scar"}
    root = write_nnunet(own[:4], tmp_path, test=own[4:], **kept)
    method = get("joint_scar")
    _, split = choose_split(method, root, method.recipe(), 0)
    assert (len(split.train), len(split.validate), split.test) == (3, 1, own.names[4:])
    shutil.rmtree(root / "labelsTs")
    _, split = choose_split(method, root, method.recipe(), 0)
    assert {*split.train, *split.validate, *split.test} == {*own.names[:4]}


def test_another_public_layout_is_matched(patients):
    dataset = open_cases(get("joint_scar"), patients("adversarial_transfer"))
    assert dataset.name == "mscmrseg"
    assert dataset[0].image("LGE").channels == 1
    assert not any(case.labels for case in dataset)  # none has scar


def test_a_case_of_files():
    case = case_of_files(get("new_lesions"), {"Earlier": "a/b.nii.gz", "later": "c.nii"})
    assert (case.name, [*case.images]) == ("b", ["earlier", "later"])
    case = case_of_files(get("siamese_lesion"), {"t1": "a.nii", "t1_myocardium": "m.nii"})
    assert case.labelling["t1_myocardium"].on == "t1"
    with pytest.raises(ValueError, match="new_lesions: files are earlier, later, brain; got t2"):
        case_of_files(get("new_lesions"), {"t2": "a.nii"})
    with pytest.raises(ValueError, match="takes more files; missing: later image"):
        case_of_files(get("new_lesions"), {"earlier": "a.nii"})


def test_a_folder_is_described(patients, tmp_path):
    text = str(describe(patients("joint_scar")))
    assert "emidec, 3 cases\nsequences: LGE (3)\nlabels: LGE (3)\n" in text
    assert "  LGE: lv=1 myocardium=2,3,4 scar=3,4 no_reflow=4" in text
    assert "joint_scar            can train: yes, 3 cases" in text
    assert "new_lesions           can train: no, missing earlier image, later image" in text
    assert "adversarial_transfer  can train: no, missing LGE label (lv, myocardium, rv)\n" in text
    loose = tmp_path / "loose"
    for case in open_dataset("emidec", patients("joint_scar")):
        (loose / case.name).mkdir(parents=True)
        shutil.copy(case.images["LGE"], loose / case.name / f"{case.name}_LGE.nii.gz")
        shutil.copy(case.labels["LGE"], loose / case.name / "mask.nii.gz")
    text = str(describe(loose, {"myocardium": (2,), "scar": (3, 4)}))
    assert "no known layout, 3 cases\nsequences: LGE (3)\nlabels: mask (3)\n" in text
    assert "joint_scar            can train: yes, 3 cases" in text
    write_table(guess_cases(loose).cases, loose / "cases.csv")
    assert recognise(loose).name == "table"
    (loose / "cases.csv").write_text(
        "".join((loose / "cases.csv").read_text().splitlines(keepends=True)[:3])
    )
    text = str(describe(loose, {"myocardium": (2,), "scar": (3, 4)}))
    assert "can train: yes, 2 cases; a random split needs 3\n" in text
    with pytest.raises(ValueError, match=r"labels: structures are .*; got hand"):
        describe(loose, {"hand": (1,)})


def test_own_layouts_are_not_the_method_s():
    for name in MODELS:
        assert not {"table", "nnunet", "bids"} & {*get(name).datasets}
    assert {"table", "nnunet", "bids"} <= {*LAYOUTS}

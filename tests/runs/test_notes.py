"""What is said before the scores of a run."""

from dataclasses import replace
from pathlib import Path

import pytest

from cmrfast.data import datasets, open_dataset
from cmrfast.data.datasets import Part, Split, write_table
from cmrfast.data.datasets.case import Case
from cmrfast.data.phantom import write_phantoms
from cmrfast.data.phantom.marker import is_synthetic
from cmrfast.methods import Row
from cmrfast.runs.notes import notes_on
from cmrfast.train import Run, train
from tests.support import training_task

SMALL_SCAR = {
    **{"image": 32, "root": 32, "units": (1, 1, 1), "width": 16, "depth": 1, "heads": 2},
    **{"decoder": (16, 16, 8, 8, 8), "batch": 4},
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    training_task.install(monkeypatch.setattr)
    changes = training_task.SMALL
    return train("siamese_lesion", "nowhere", tmp_path / "run", epochs=2, changes=changes)


def scored(count):
    return [Row({"case": f"subject{n}"}, {"accuracy": 1.0}) for n in range(1, count + 1)]


def test_few_patients_and_few_epochs(run):
    cases = training_task.cases()
    assert notes_on(run, "all", cases, scored(6)) == [
        "The network is hardly trained: it stopped in epoch 2 of the recipe's 300.",
        "Only 6 patients are scored: fewer than 10 say little about others.",
    ]
    assert notes_on(run, "test", cases[:1], scored(1))[1].startswith("Only 1 patient is scored")


def test_a_trained_network_and_enough_patients_need_no_note(run):
    log = run.path / "log.jsonl"
    log.write_text('{"step": 900, "loss": 1.0, "epoch": 29}\n')
    assert notes_on(run, "all", training_task.cases(10), scored(10)) == []
    log.write_text('{"step": 870, "loss": 1.0, "epoch": 28}\n')
    assert len(notes_on(run, "all", training_task.cases(10), scored(10))) == 1


def test_patients_without_labels_are_named(run):
    cases = training_task.cases(18)
    *_, note = notes_on(run, "all", cases, scored(11))
    assert note == (
        "Without the labels to be scored: 7 of 18 patients "
        "(subject12, subject13, subject14, subject15, subject16, …)."
    )
    *_, few, note = notes_on(run, "all", cases[:1], [])
    assert few.startswith("No patient is scored")
    assert note.endswith("1 of 1 patients (subject1).")


def test_images_that_also_trained(run):
    train_part = Part({"subject1": ("C0",), "subject2": ("C0",)}, {"subject1": ("LGE", "T2")})
    split = Split(train_part, (), Part({"subject1": ("LGE",)}))
    assert split.tested_unlabelled == {"subject1": ("LGE",)}
    assert run.plan.split.tested_unlabelled == {}
    other = Run(run.path, replace(run.plan, split=split), run.data, run.fitted)
    *_, note = notes_on(other, "test", training_task.cases(1), scored(1))
    assert note == (
        "LGE of 1 tested patients trained as well, without masks: these are not scores of "
        "patients whom the network has never seen."
    )
    assert note not in notes_on(other, "all", training_task.cases(1), scored(1))


def test_patients_who_trained_the_network_are_counted(run, tmp_path, monkeypatch):
    monkeypatch.setitem(datasets.LAYOUTS, "t1_lge", training_task.Layout(images=True))
    names = run.plan.split.train
    rows = [Row({"case": name}, {"accuracy": 1.0}) for name in (*names, "other")]
    here, there = (
        [Case(name, {"t1": root / f"{name}.nii"}, {}, {}) for name in (*names, "other")]
        for root in (Path(run.data), tmp_path)
    )
    note = "4 of 5 scored patients trained the network: their scores say nothing about others."
    assert notes_on(run, "all", here, rows)[0] == note
    assert notes_on(run, "train", here[:4], rows[:4])[0].startswith("4 of 4 scored patients")
    assert note not in notes_on(run, "all", there, rows)  # others of the same names
    assert note not in notes_on(run, "test", here, rows)


NOTE = "4 of 6 scored patients trained the network: their scores say nothing about others."


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patients") / "p"
    return open_dataset("emidec", write_phantoms("emidec", folder, cases=6, shrink=4))


@pytest.fixture(scope="module")
def of_table(patients, tmp_path_factory):
    """A run on a table, of files that lie elsewhere."""
    table = tmp_path_factory.mktemp("table") / "mine.csv"
    write_table(patients.cases, table)
    values = {"myocardium": (2,), "scar": (3, 4)}
    run = train(
        "joint_scar", table, table.parent / "run", labels=values, steps=1, changes=SMALL_SCAR
    )
    assert len(run.plan.split.train) == 4
    return run


def notes_of(run, root, part="all"):
    cases = run.cases(part, root)
    return notes_on(run, part, cases, [Row({"case": case.name}, {}) for case in cases])


def test_patients_of_a_table_are_known(of_table, patients):
    assert NOTE in notes_of(of_table, None)
    assert NOTE.replace("of 6", "of 4") in notes_of(of_table, None, "train")
    assert NOTE in notes_of(of_table, patients.root)
    without = Run(of_table.path, of_table.plan, of_table.data, of_table.fitted)
    assert NOTE in notes_of(without, patients.root)  # of a run without hashes


def test_patients_of_a_linked_folder_are_known(of_table, patients, tmp_path):
    (tmp_path / "link").symlink_to(patients.root)
    assert NOTE in notes_of(of_table, tmp_path / "link")


def test_patients_who_were_copied_and_renamed_are_known(of_table, patients, tmp_path):
    renamed = []
    for number, case in enumerate(patients):
        (image,) = case.images.values()
        copy = tmp_path / f"{number}.nii.gz"
        copy.write_bytes(image.read_bytes())
        renamed.append(replace(case, name=f"x{number}", images={"LGE": copy}))
    write_table(renamed, tmp_path / "cases.csv")
    assert NOTE in notes_of(of_table, tmp_path)
    run = of_table
    moved = Run(run.path, run.plan, "gone", run.fitted, run.inputs)
    assert NOTE in notes_of(moved, tmp_path)


def test_others_of_the_same_names_are_not_those_who_trained(of_table, patients, tmp_path):
    root = write_phantoms("emidec", tmp_path / "others", cases=6, seed=7, shrink=4)
    assert of_table.cases("all", root)[0].name == patients[0].name
    assert not any("trained the network" in note for note in notes_of(of_table, root))


def test_those_who_trained_the_weights_are_known_wherever_they_lie(of_table, patients, tmp_path):
    split = of_table.plan.split
    swapped = Split(split.test, split.validate, split.train)
    init = str(of_table.path)
    plan = replace(of_table.plan, split=swapped, init=init, layout="emidec", labels=None)
    tuned = Run(tmp_path, plan, str(patients.root), of_table.fitted)
    *_, note = notes_of(tuned, None, "test")
    assert note.startswith("4 of the scored patients (Case_")
    root = write_phantoms("emidec", tmp_path / "others", cases=6, seed=7, shrink=4)
    assert not any("whose weights" in note for note in notes_of(tuned, root, "test"))


def test_synthetic_patients_are_recognised(run, tmp_path):
    root = write_phantoms("t1_lge", tmp_path / "new", cases=1, shrink=4)
    image = next(root.rglob("*.nii.gz"))
    assert is_synthetic(image)
    assert not is_synthetic(tmp_path / "old" / image.name)
    first, *_ = notes_on(run, "all", [Case("subject1", {"t1": image}, {}, {})], scored(1))
    assert first == "The patients are synthetic: these scores say nothing about real ones."

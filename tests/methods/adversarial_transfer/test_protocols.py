"""Splits per sequence: the paper's protocols, and files that a training must not open."""

import io
import json
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrfast import CheckpointError, FileError, methods
from cmrfast.data import Part, Split, open_dataset
from cmrfast.data.cache import Cache
from cmrfast.data.phantom import write_phantoms
from cmrfast.methods.adversarial_transfer import PROTOCOLS, protocol_split
from cmrfast.models.adversarial_transfer import Config, Recipe
from cmrfast.runs import evaluate, predict, verify
from cmrfast.train import Run, train
from cmrfast.train.inputs import input_digests
from tests.support.opened import record_opened

SEQUENCES = ("C0", "T2", "LGE")
NETWORK = {"size": 56, "width": 4, "disc_widths": (4, 6, 8)}
QUICK = {"view_px": 64, "crop_shift_px": 3, "copies": 0, "pixel_mm": 0.0, "batch": 2}
QUICK |= {"pretrain_epochs": 0}
TASK = methods.get("adversarial_transfer").task(Config(**NETWORK), Recipe(**QUICK))
PAPER = [f"patient{n}" for n in range(1, 46)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_phantoms("mscmrseg", tmp_path_factory.mktemp("hearts"), cases=6, shrink=4, seed=2)


@pytest.fixture(scope="module")
def dataset(root):
    return open_dataset("mscmrseg", root)


def run_training(root, out, **options):
    options = {"changes": NETWORK | QUICK, "steps": 2, "device": "cpu", "micro_batch": 2, **options}
    return train("adversarial_transfer", root, out, **options)


def files_of(case):
    return {*case.images.values(), *case.labels.values()}


def images_and_masks(root):
    return set(root.rglob("*.nii.gz"))


def test_a_training_says_that_it_ends_before_the_adversary_begins(root, tmp_path):
    said = {}
    for epochs in (0, 1):
        changes = NETWORK | QUICK | {"pretrain_epochs": epochs}
        stream = io.StringIO()
        run_training(root, tmp_path / str(epochs), changes=changes, stream=stream)
        said[epochs] = (
            "training ends in epoch 1 and never reaches the adversary" in stream.getvalue()
        )
    assert said == {0: False, 1: True}


# The protocols


def test_table_1_holds_out_two_patients():
    split = protocol_split("table 1", PAPER)
    assert split.test == Part({"patient4": ("LGE",), "patient5": ("LGE",)})
    assert split.validate == ()
    for n, name in enumerate(PAPER, start=1):
        expected = None if n in (4, 5) or n > 35 else SEQUENCES if n < 4 else ("C0", "T2")
        assert split.train.sequences.get(name) == (expected and tuple(sorted(expected)))
    assert split.train.unlabelled == {f"patient{n}": ("LGE",) for n in range(6, 36)}


def test_tables_2_and_3_test_lge_of_those_whose_other_sequences_train():
    split = protocol_split("table 2", reversed(PAPER))
    assert split == protocol_split("table 3", PAPER)
    assert split.test == Part({f"patient{n}": ("LGE",) for n in range(6, 46)})
    assert [n for n in split.train if "LGE" in split.train.sequences[n]] == PAPER[:5]
    assert {split.train.sequences[n] for n in PAPER[5:35]} == {("C0", "T2")}
    assert split.train.unlabelled == dict.fromkeys(PAPER[5:35], ("LGE",))
    assert list(split.train) == PAPER[:35]


@given(st.integers(4, 200), st.sampled_from(sorted(PROTOCOLS)))
def test_other_cohorts_are_split_in_proportion(count, name):
    names = [f"p{n}" for n in range(count)]
    split = protocol_split(name, names)
    lenders = [p for p in split.train if "LGE" in split.train.sequences[p]]
    others = [p for p in split.train if p not in lenders]
    held_out = name == "table 1"
    for group, of_45 in (
        (lenders, 3 if held_out else 5),
        (others, 30),
        (split.test, 2 if held_out else 40),
    ):
        assert group
        assert abs(len(group) - count * of_45 / 45) <= 2
    assert lenders == names[: len(lenders)]
    assert [*split.train.unlabelled] == others
    assert set(lenders).isdisjoint(split.test)
    assert set(others).isdisjoint(split.test) == held_out


def test_wrong_protocols():
    with pytest.raises(
        ValueError, match="name must be one of table 1, table 2, table 3; got 'table 4'"
    ):
        protocol_split("table 4", PAPER)
    with pytest.raises(ValueError, match="protocol_split: 4 patients are needed; got 3"):
        protocol_split("table 1", PAPER[:3])


def test_published_rows_name_their_protocol():
    rows = methods.get("adversarial_transfer").published
    assert rows["u, patients 4 and 5"].protocol == PROTOCOLS["table 1"]
    assert rows["u_a_t"].protocol == PROTOCOLS["table 2"]
    assert rows["u_a_t, median"].protocol == PROTOCOLS["table 3"]


# Whose masks are used


def test_the_split_says_whose_lge_masks_are_used(dataset):
    split = protocol_split("table 2", dataset.names)
    lge = [n for n in split.train if "LGE" in split.train.sequences[n]]
    assert len(lge) == 2  # in proportion, the recipe would use one
    cases = list(dataset.subset(split.train))
    for lge_masks in (0, 1, 5):
        task = methods.get("adversarial_transfer").task(
            TASK.config, replace(TASK.recipe, lge_masks=lge_masks)
        )
        assert task._lge_lenders(cases) == set(lge)
    for case in cases:
        true, pseudo = TASK._stacks(case, case.name in lge)
        assert (len(true), len(pseudo)) == ((3, 0) if case.name in lge else (2, 2))


def test_all_of_a_training_part_lend_their_lge_masks(dataset):
    part = Part(dict.fromkeys(dataset.names, SEQUENCES))
    cases = list(dataset.subset(part))
    assert TASK._lge_lenders(cases) == set(dataset.names)
    assert len(TASK._lge_lenders(list(dataset))) == 1


def test_the_cache_is_that_of_whole_patients(dataset, tmp_path):
    part = protocol_split("table 2", dataset.names).train
    task = methods.get("adversarial_transfer").task(TASK.config, TASK.recipe, cache=Cache(tmp_path))
    for case in dataset:
        task._stacks(case, lends_lge=True)
        task._stacks(case, lends_lge=False)
    before = {path.name for path in tmp_path.iterdir()}
    feed = task.feed(list(dataset.subset(part)), seed=0)
    assert {path.name for path in tmp_path.iterdir()} == before
    batch, again = (
        f.batch(0, torch.arange(3)) for f in (feed, TASK.feed(list(dataset.subset(part)), seed=0))
    )
    assert all(torch.equal(batch[name], again[name]) for name in batch)


# Files that a training must not open


choices = st.fixed_dictionaries(
    {
        f"patient{n}": st.fixed_dictionaries(
            {
                **dict.fromkeys(
                    ("C0", "T2"), st.sampled_from(["train", "train", "validate", "test"])
                ),
                "LGE": st.sampled_from(["train", "validate", "test", "unlabelled"]),
            }
        )
        for n in range(1, 5)
    }
)


@settings(max_examples=10, deadline=None)
@given(choices)
def test_nothing_of_another_part_is_opened(dataset, chosen):
    def part(name):
        listed = {
            patient: tuple(s for s in SEQUENCES if its[s] == name)
            for patient, its in chosen.items()
        }
        return {patient: sequences for patient, sequences in listed.items() if sequences}

    training = part("train")
    unlabelled = {name: its for name, its in part("unlabelled").items() if name in training}
    split = Split(Part(training, unlabelled), Part(part("validate")), Part(part("test")))
    cases = list(dataset.subset(split.train))
    validated = list(dataset.subset(split.validate))
    with record_opened() as opened:
        with suppress(FileError):  # too little to train on
            TASK.feed(cases, seed=0)
        digests = input_digests(TASK, [*cases, *validated])
    allowed = {path for case in cases for path in files_of(case)}
    hashed = allowed | {path for case in validated for path in files_of(case)}
    assert opened & images_and_masks(dataset.root) <= hashed
    for patient, its in chosen.items():
        for sequence in SEQUENCES:
            image = f"image {sequence}" in digests.get(patient, {})
            mask = f"label {sequence}" in digests.get(patient, {})
            unlabelled_here = its[sequence] == "unlabelled" and patient in training
            assert mask == (its[sequence] in ("train", "validate"))
            assert image == (mask or unlabelled_here)


@pytest.mark.parametrize("name", ["table 1", "table 2"])
def test_tested_files_may_be_unreadable_in_training(tmp_path, name):
    root = write_phantoms("mscmrseg", tmp_path / "data", cases=4, shrink=4, seed=2)
    dataset = open_dataset("mscmrseg", root)
    split = protocol_split(name, dataset.names)
    used = {path for case in dataset.subset(split.train) for path in files_of(case)}
    hidden = {path: path.read_bytes() for path in images_and_masks(root) - used}
    tested = {path for case in dataset.subset(split.test) for path in case.labels.values()}
    assert tested <= hidden.keys()
    for path in hidden:
        path.write_bytes(b"not to be opened")
    split.save(tmp_path / "patients.json")
    options = {"split": Split.load(tmp_path / "patients.json")}
    with record_opened() as opened:
        run = run_training(root, tmp_path / "run", **options, steps=1)
        run_training(root, tmp_path / "run", **options, resume=True)
        assert verify(Run.open(run.path)).same
    assert opened.isdisjoint(hidden)
    assert opened >= used
    for path, content in hidden.items():
        path.write_bytes(content)
    with record_opened() as opened:
        rows = evaluate(Run.open(run.path)).rows
    assert [row.case for row in rows] == list(split.test)
    assert opened & images_and_masks(root) == {
        path for case in dataset.subset(split.test) for path in files_of(case)
    }
    tested_image = dataset[-1].images["LGE"]
    outcome = predict(Run.open(run.path), [tested_image], tmp_path / "out")
    assert (len(outcome.done), outcome.failed) == (1, {})


def test_a_run_keeps_its_split(root, tmp_path):
    split = protocol_split("table 2", open_dataset("mscmrseg", root).names)
    run = run_training(root, tmp_path / "run", split=split, steps=1)
    stored = json.loads((run.path / "run.json").read_text())
    assert stored["plan"]["split"] == split.as_json()
    assert Run.open(run.path).plan == run.plan
    assert run.plan.made_for["split"] == split.as_json()
    seen = {(case, file) for case, files in stored["inputs"].items() for file in files}
    assert seen == {
        (name, f"{kind} {sequence}")
        for name in split.train
        for sequence in SEQUENCES
        for kind in ("image", "label")
        if kind == "image" or sequence in split.train.sequences[name]
    }
    other = Split(replace(split.train, unlabelled={}), split.validate, split.test)
    with pytest.raises(CheckpointError, match="was begun with another split of the patients"):
        run_training(root, run.path, split=other, resume=True)
    assert run_training(root, run.path, resume=True, steps=2).plan.split == split


def test_a_patient_trains_and_validates_with_other_sequences(root, tmp_path):
    """Its files of both parts are hashed."""
    names = open_dataset("mscmrseg", root).names
    split = Split(
        Part({names[0]: SEQUENCES, names[1]: ("C0", "T2")}, {names[1]: ("LGE",)}),
        Part({names[1]: ("LGE",)}),
        names[2:],
    )
    run = run_training(root, tmp_path / "run", split=split, steps=1)
    assert run.inputs[names[1]].keys() == run.inputs[names[0]].keys()
    assert len(run.inputs[names[1]]) == 6
    assert [row.case for row in evaluate(run, part="validate").rows] == [names[1]]
    assert run.cases("train")[1].labels.keys() == {"C0", "T2"}


def test_a_missing_sequence_is_named_before_training(root, tmp_path):
    names = open_dataset("mscmrseg", root).names
    for split in (
        Split(Part({names[0]: ("C0", "LGe")}), (), ()),
        Split(names[:1], (), Part({names[1]: ("C0", "LGe")})),
    ):
        with pytest.raises(
            FileError, match=r"image: patient\d has no LGe image; it has C0, LGE, T2"
        ):
            run_training(root, tmp_path / "run", split=split)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_search_takes_a_split_per_sequence(root, tmp_path):
    pytest.importorskip("optuna")
    from cmrfast.train.search import search

    names = open_dataset("mscmrseg", root).names
    split = Split(
        Part({names[0]: SEQUENCES, names[1]: ("C0", "T2")}, {names[1]: ("LGE",)}),
        Part({names[1]: ("LGE",)}),
        Part({names[2]: ("LGE",)}),
    )
    options = {"changes": NETWORK | QUICK, "steps": 1, "device": "cpu", "split": split}
    options["micro_batch"] = 2
    assert search("adversarial_transfer", root, tmp_path, trials=1, **options)["trials"] == 1
    assert Run.open(tmp_path / "trials" / "0000").plan.split == split

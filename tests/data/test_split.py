"""Patients dealt out to training, validation and test."""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrfast import FileError
from cmrfast.data import Part, Split, split_by_patient
from cmrfast.data.datasets import Case, Dataset, Labelling


@given(st.integers(3, 200), st.tuples(*[st.integers(1, 100)] * 3), st.integers(0, 5))
def test_a_split_deals_out_everyone_once_in_proportion(count, parts, seed):
    names = [f"p{n}" for n in range(count)]
    split = split_by_patient(names, parts, seed=seed)
    dealt = [split.train, split.validate, split.test]
    assert sorted(name for part in dealt for name in part) == sorted(names)
    for part, share in zip(dealt, parts, strict=True):
        assert len(part) >= 1
        assert abs(len(part) - count * share / sum(parts)) < 3
    assert split == split_by_patient(reversed(names), parts, seed=seed)


def test_a_papers_counts_are_kept_and_seeds_differ():
    names = [f"patient{n}" for n in range(1, 46)]
    split = split_by_patient(names, (35, 5, 5))
    assert [len(split.train), len(split.validate), len(split.test)] == [35, 5, 5]
    assert split != split_by_patient(names, (35, 5, 5), seed=1)
    # A seed must mean the same split in every release.
    assert split.test == ("patient13", "patient21", "patient30", "patient38", "patient44")


@pytest.mark.parametrize(
    ("parts", "counts"), [((13, 0, 2), [8, 0, 1]), ((1, 1, 0), [5, 4, 0]), ((1, 0, 0), [9, 0, 0])]
)
def test_a_part_of_zero_is_empty(parts, counts):
    split = split_by_patient([f"p{n}" for n in range(9)], parts)
    assert [len(split.train), len(split.validate), len(split.test)] == counts


def test_a_split_is_kept_in_a_file(tmp_path):
    split = split_by_patient(["a", "b", "c", "d"])
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must map train"),
        ("[]", "must map train, validate and test to lists of names"),
        ('{"train": ["a"], "validate": ["b"], "test": "c"}', "must map train"),
        ('{"train": ["a"], "validate": ["b"], "test": [1]}', "must map train"),
        ('{"train": ["a"], "validate": ["b"], "test": ["a"]}', "to one part; twice: a"),
        ("null", "must map train"),
        ('"text"', "must map train"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"a":' * 100_000, "is nested too deeply"),
        ('{"train": 5, "validate": null, "test": {}}', "must map train"),
        ('{"train": [["a"]], "validate": [], "test": []}', "must map train"),
        ("", "must map train"),
        ("\ufeff{}", "must map train"),
        (
            '{"train": ["a"], "validate": [], "test": [], "other": []}',
            "map names to lists of sequences: it must hold nothing else; got other",
        ),
        ('{"train": {"a": "LGE"}, "validate": [], "test": []}', "a must be a list; it is text"),
        ('{"train": {"a": [1]}, "validate": [], "test": []}', "a must be a list of text"),
        ('{"train": {"a": []}, "validate": [], "test": []}', "a must have one .* got none"),
        ('{"train": {"a": ["C0", "C0"]}, "validate": [], "test": []}', "once; got C0, C0"),
        ('{"train": {"a": ["C0"]}, "validate": [], "test": ["a"]}', "to one part; twice: a"),
        (
            '{"train": {"a": ["C0", "T2"]}, "validate": {"b": ["C0"]}, "test": {"a": ["T2"]}}',
            "Split: a sequence belongs to one part; twice: T2 of a",
        ),
        (
            '{"train": ["a"], "validate": [], "test": [], "unlabelled": {"a": ["LGE"]}}',
            "unlabelled goes with an object for train",
        ),
        (
            '{"train": {"a": ["T2"]}, "validate": [], "test": [], "unlabelled": ["a"]}',
            "unlabelled must be an object; it is a list",
        ),
        (
            '{"train": {"a": ["T2"]}, "validate": [], "test": [], "unlabelled": {"b": ["T2"]}}',
            "b must have sequences with masks besides the unlabelled ones",
        ),
        (
            '{"train": {"a": ["T2"]}, "validate": [], "test": [], "unlabelled": {"a": ["T2"]}}',
            "with its mask or without; a has both of T2",
        ),
    ],
)
def test_a_damaged_split(tmp_path, content, message):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(FileError, match=message):
        Split.load(tmp_path / "split.json")


def test_a_split_that_is_not_there(tmp_path):
    with pytest.raises(FileError, match=r"load: .*split\.json: No such file"):
        Split.load(tmp_path / "split.json")
    with pytest.raises(FileError, match=r"save: .*split\.json: No such file"):
        Split(("a",), ("b",), ("c",)).save(tmp_path / "none/split.json")


def test_a_split_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/stdin"):
        with pytest.raises(FileError, match="is not a regular file"):
            Split.load(path)
    for path in (tmp_path, "a\0b", "a" * 300):
        with pytest.raises(FileError, match="load: "):
            Split.load(path)
    (tmp_path / "latin.json").write_bytes(b'{"train": ["\xff"]}')
    with pytest.raises(FileError, match="must map train"):
        Split.load(tmp_path / "latin.json")


def test_a_long_split_takes_no_long(tmp_path):
    names = [f"p{n}" for n in range(200_000)]
    Split(tuple(names), ("a",), ("b",)).save(tmp_path / "split.json")
    begin = time.perf_counter()
    assert len(Split.load(tmp_path / "split.json").train) == 200_000
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize("parts", [(1, 1), (0, 1, 1), (1, 1, -1)])
def test_wrong_parts(parts):
    message = "split_by_patient: parts must be three numbers, the first positive and none negative"
    with pytest.raises(ValueError, match=message):
        split_by_patient(["a", "b", "c"], parts)
    with pytest.raises(ValueError, match="split_by_patient: three patients are needed; got 2"):
        split_by_patient(["a", "b", "b"])


SEQUENCES = ("C0", "LGE", "T2")
#: A part, or None, of every sequence of some patients.
choices = st.dictionaries(
    st.sampled_from([f"patient{n}" for n in range(1, 8)]),
    st.fixed_dictionaries(
        {
            sequence: st.sampled_from(["train", "validate", "test", "unlabelled", None])
            for sequence in SEQUENCES
        }
    ),
)


def split_of(chosen):
    """The split that gives each sequence to the chosen part."""

    def part(name):
        listed = {
            patient: tuple(sequence for sequence, its in parts.items() if its == name)
            for patient, parts in chosen.items()
        }
        return {patient: sequences for patient, sequences in listed.items() if sequences}

    train = part("train")
    unlabelled = {patient: its for patient, its in part("unlabelled").items() if patient in train}
    return Split(Part(train, unlabelled), Part(part("validate")), Part(part("test")))


def cohort(names, sequences=SEQUENCES):
    """Cases whose masks are named otherwise than the images that they lie on."""
    return Dataset(
        "mscmrseg",
        Path("nowhere"),
        tuple(
            Case(
                name,
                {s: Path(f"{name}_{s}.nii") for s in sequences},
                {
                    f"heart on {sequence}": Path(f"{name}_{sequence}_m.nii")
                    for sequence in sequences
                },
                {f"heart on {sequence}": Labelling(sequence, {}, {}) for sequence in sequences},
            )
            for name in names
        ),
    )


@given(choices)
def test_a_part_shows_its_sequences_alone(chosen):
    split = split_of(chosen)
    dataset = cohort(chosen)
    seen = []
    for name in ("train", "validate", "test"):
        part = getattr(split, name)
        cases = dataset.subset(part)
        assert cases.names == tuple(part)
        for case in cases:
            wanted = {s for s in SEQUENCES if chosen[case.name][s] == name}
            images = {s for s in SEQUENCES if chosen[case.name][s] == "unlabelled"}
            assert case.images.keys() == wanted | (images if name == "train" else set())
            assert case.labels.keys() == {f"heart on {s}" for s in wanted}
            assert case.labelling.keys() == case.labels.keys()
            assert case.sequences == tuple(sorted(wanted))
            seen += [(case.name, label) for label in case.labels]
    assert len(seen) == len(set(seen))


@given(choices, st.data())
def test_a_split_per_sequence_reads_back(chosen, data):
    split = split_of(chosen)
    text = json.dumps(split.as_json())
    back = Split.from_json(json.loads(text))
    assert back == split
    assert json.dumps(back.as_json()) == text
    shuffled = {
        part: {name: data.draw(st.permutations(its)) for name, its in content.items()}
        for part, content in split.as_json().items()
    }
    assert Split.from_json(shuffled) == split  # the order of sequences means nothing


@given(choices, st.integers(-3, 3), st.integers(-3, 8))
def test_a_part_is_a_sequence_of_names(chosen, start, stop):
    part = split_of(chosen).train
    names = list(part)
    assert (len(part), [*part[start:stop]]) == (len(names), names[start:stop])
    assert list(reversed(part)) == names[::-1]
    assert all(name in part and part[k] == name for k, name in enumerate(names))
    cases = cohort(chosen).subset(part)
    assert cohort(chosen).subset(part[start:stop]).cases == cases.cases[start:stop]


def test_parts_may_be_of_both_kinds(tmp_path):
    split = Split(Part({"a": ("C0", "T2")}, {"a": ("LGE",)}), ("b",), Part({"a": ("LGE",)}))
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split
    assert json.loads((tmp_path / "split.json").read_text()) == {
        "train": {"a": ["C0", "T2"]},
        "validate": ["b"],
        "test": {"a": ["LGE"]},
        "unlabelled": {"a": ["LGE"]},
    }
    assert len(cohort("ab").subset(split.validate)[0].images) == 3
    assert cohort("ab").subset(split.validate)[0].sequences is None
    with pytest.raises(ValueError, match="only the training part may have unlabelled sequences"):
        Split(("b",), (), Part({"a": ("C0",)}, {"a": ("LGE",)}))


def test_whole_patients_are_stored_as_they_always_were():
    """Runs and checkpoints of earlier versions hold this, and are compared with it."""
    stored = {"train": ["b", "a"], "validate": ["c"], "test": []}
    split = Split.from_json(stored)
    assert split == Split(("b", "a"), ("c",), ())
    assert split.as_json() == stored


def test_a_sequence_that_a_case_lacks():
    for part in (Part({"a": ("C0", "LGE")}), Part({"a": ("C0",)}, {"a": ("LGE",)})):
        with pytest.raises(FileError, match="image: a has no LGE image; it has C0, T2"):
            cohort("a", ("C0", "T2")).subset(part)

"""The table of an evaluation: what was measured, beside what the paper printed."""

import math
from dataclasses import replace

import pytest

from cmrfast import methods, metrics
from cmrfast.errors import FileError
from cmrfast.methods import Row
from cmrfast.models import MODELS
from cmrfast.runs.evaluate import Evaluation, evaluate
from cmrfast.runs.text import align_columns, format_numbers
from cmrfast.train import train
from tests.support import training_task


def test_table_sets_published_rows_beside_this_run():
    rows = [
        Row({"case": "a", "slice": 0}, {"scar_dice": 0.5, "myocardium_dice": 0.75}),
        Row({"case": "b", "slice": 0}, {"scar_dice": math.nan, "myocardium_dice": 0.85}),
    ]
    record = methods.get("joint_scar")
    found = Evaluation("joint_scar", "test", rows, {"recall_of_all": 0.625}, record, ["Be wary."])
    assert found.table().splitlines() == [
        "joint_scar, test: 2 patients; mean (SD)",
        "                                     both",
        "                 this run       n    empty  [1]    [2]    [3]",
        "scar_dice        0.500          1    0      -      -      -",
        "myocardium_dice  0.800 (0.071)  2    0      0.894  0.900  0.891",
        "recall_of_all    0.625          all  -      -      -      -",
        "published, [1] two steps (two_step); [2] multi-task learning (mtl); [3] joint deep",
        "  learning (jdl): 140 patients (510 slices) to train, 28 (125 slices) to test",
        "note: Be wary.",
    ]


def scar(case, k, which, dice):
    return Row({"case": case, "slice": k}, {"scar_dice": dice}, {"scar": which})


def test_two_empty_masks_count_apart_from_real_overlap():
    """One patient without scar, in whom nothing was predicted, is no Dice of 1."""
    record = methods.get("joint_scar")
    healthy = [scar("healthy", k, "neither", 1.0) for k in range(3)]
    found = Evaluation("joint_scar", "test", healthy, {}, record)
    assert found.summary()["scar_dice"].cases == 0
    assert found.both_empty("scar_dice") == 3
    assert found.table().splitlines()[3].split() == ["scar_dice", "-", "0", "3", *"---"]
    ill = [
        scar("ill", 0, "both", 0.5),
        scar("ill", 1, "reference", 0.0),
        scar("ill", 2, "prediction", 0.0),
    ]
    found = Evaluation("joint_scar", "test", [*healthy, *ill], {}, record)
    assert found.summary()["scar_dice"].mean == pytest.approx(0.5 / 3)
    assert math.isnan(found.summary("healthy")["scar_dice"].mean)
    assert found.as_json()["summary"]["scar_dice"]["both_empty"] == 3
    assert found.size == "2 patients, 6 slices"
    assert found.structures() == [
        "scar: in 2 of 6 slices, predicted in 1 of these, predicted in 1 of the 4 without"
    ]
    assert found.structures()[0] in found.table().splitlines()


@pytest.mark.parametrize("name", MODELS)
def test_published_rows_have_words_and_a_protocol(name):
    published = methods.get(name).published
    titles = [row.title for row in published.values()]
    assert len(set(titles)) == len(titles)
    assert all(row.protocol and "," not in row.title.split()[0] for row in published.values())


def test_a_metric_that_only_the_paper_has_keeps_its_line():
    record = methods.get("siamese_lesion")
    found = Evaluation("siamese_lesion", "test", [], {"balanced": 80.0}, record)
    lines = found.table().splitlines()
    assert lines[3].split() == ["balanced", "80.0", "all", "-", "50", "69.51", "78.96", "81.61"]
    assert lines[4].split() == ["sensitivity", *"---", "100", "41.88", "59.83", "71.79"]
    assert found.beside_published()["sensitivity"][0] is None


def test_a_method_without_published_rows_has_its_own_columns_only():
    found = Evaluation("new_lesions", "test", [Row({"case": "a"}, {"dice": 1.0})], {})
    assert found.table().splitlines() == [
        "new_lesions, test: 1 patient; mean (SD)",
        "                   both",
        "      this run  n  empty",
        "dice  1.000     1  -",
    ]


def test_a_metric_without_any_value_is_a_dash():
    found = Evaluation("new_lesions", "test", [Row({"case": "a"}, {"f1": math.nan})], {})
    assert found.table().splitlines()[3:] == ["f1  -         0  -"]
    assert found.summary()["f1"] == pytest.approx(
        metrics.Summary(math.nan, math.nan, math.nan, 0, 1), nan_ok=True
    )


def test_numbers_of_a_score_have_as_many_decimals():
    assert format_numbers([9.588, 0.5652]) == ["9.59", "0.57"]
    assert format_numbers([1.0, 0.07071, math.nan]) == ["1.000", "0.071", "-"]
    assert format_numbers([81.61, 3.14159, -0.5]) == ["81.6", "3.1", "-0.5"]
    assert format_numbers([0.0002, 0.5, 0.0]) == ["2e-04", "0.500", "0.000"]
    assert format_numbers([math.inf]) == ["inf"]


def test_align_columns_breaks_heads_between_words_only_where_their_column_is_narrower():
    lines = [["", "one two overlong", "broad head"], ["a", "1", "as broad as it"]]
    assert align_columns(lines, heads=7).splitlines() == [
        "   one two",
        "   overlong  broad head",
        "a  1         as broad as it",
    ]
    assert align_columns(lines, right=True).splitlines() == [
        "   one two overlong      broad head",
        "a                 1  as broad as it",
    ]


def test_an_evaluation_reads_back(tmp_path, monkeypatch):
    training_task.install(monkeypatch.setattr)
    changes = training_task.SMALL
    run = train("siamese_lesion", "nowhere", tmp_path / "run", steps=1, changes=changes)
    evaluation = evaluate(run)
    evaluation.save(run.path)
    assert Evaluation.load(run.path, "test") == evaluation
    marked = [replace(row, present={"lesion": "reference"}) for row in evaluation.rows]
    evaluation = replace(evaluation, rows=marked)
    evaluation.save(run.path)
    assert Evaluation.load(run.path, "test") == evaluation
    file = run.path / "evaluation-test.json"
    file.write_text(file.read_text().replace('"reference"', '"half"'))
    with pytest.raises(FileError, match="lesion_in must be some of both, reference, prediction, n"):
        Evaluation.load(run.path, "test")
    file.write_text('{"ids": [], "present": [], "notes": [], "rows": [], "failed": {"a": 1}}')
    with pytest.raises(FileError, match="a must be text"):
        Evaluation.load(run.path, "test")
    file.write_text('{"ids": [], "present": [], "notes": [], "rows": []}')
    assert Evaluation.load(run.path, "test").failed == {}
    file.write_text('{"ids": [["case"]], "present": [], "notes": [], "rows": []}')
    with pytest.raises(FileError, match="ids must be a list of text"):
        Evaluation.load(run.path, "test")
    file.write_text('{"rows": []}')
    with pytest.raises(FileError, match=r"^load_evaluation: .*is damaged or of an older"):
        Evaluation.load(run.path, "test")


class Fails(training_task.RandomTask):
    """Cannot score one patient."""

    bad = "subject2"

    def evaluate(self, model, case):
        if case.name == self.bad:
            raise FileError("image: x.nii.gz\n is cut off")
        return super().evaluate(model, case)


class FailsTogether(Fails):
    """Scores all patients at once."""

    mixes_cases = True

    def evaluate_all(self, model, cases):
        rows = [row for case in cases for row in self.evaluate(model, case)]
        return [replace(row, ids={**row.ids, "of": len(cases)}) for row in rows]


@pytest.mark.parametrize("task", [Fails, FailsTogether])
def test_a_patient_that_fails_does_not_stop_the_others(task, tmp_path, monkeypatch):
    training_task.install(monkeypatch.setattr, replace(training_task.METHOD, task=task))
    changes = training_task.SMALL
    run = train("siamese_lesion", "nowhere", tmp_path / "run", steps=1, changes=changes)
    evaluation = evaluate(run, part="all")
    assert [row.case for row in evaluation.rows] == [f"subject{n}" for n in (1, 3, 4, 5, 6)]
    assert all(row.ids.get("of", 5) == 5 for row in evaluation.rows)
    assert evaluation.failed == {"subject2": "image: x.nii.gz is cut off"}
    note = "1 of 6 patients could not be scored: subject2: image: x.nii.gz is cut off."
    assert note in evaluation.notes
    assert not any(note.startswith("Without the labels") for note in evaluation.notes)
    evaluation.save(run.path)
    assert Evaluation.load(run.path, "all") == evaluation


def test_what_is_wrong_with_no_single_patient_is_an_error(tmp_path, monkeypatch):
    training_task.install(monkeypatch.setattr, replace(training_task.METHOD, task=FailsTogether))
    monkeypatch.setattr(Fails, "bad", "none")
    changes = training_task.SMALL
    run = train("siamese_lesion", "nowhere", tmp_path / "run", steps=1, changes=changes)

    def evaluate_all(self, model, cases):
        if len(cases) > 1:
            raise ValueError("too many")
        return self.evaluate(model, cases[0])

    monkeypatch.setattr(FailsTogether, "evaluate_all", evaluate_all)
    with pytest.raises(ValueError, match=r"^too many$"):
        evaluate(run, part="all")


def test_no_patient_can_be_scored(tmp_path, monkeypatch):
    training_task.install(monkeypatch.setattr, replace(training_task.METHOD, task=Fails))
    changes = training_task.SMALL
    run = train("siamese_lesion", "nowhere", tmp_path / "run", steps=1, changes=changes)
    (bad,) = run.plan.split.test
    monkeypatch.setattr(Fails, "bad", bad)
    message = rf"^evaluate: no case of \S+ can be scored; {bad}: image: x.nii.gz is cut off$"
    with pytest.raises(FileError, match=message) as raised:
        evaluate(run)
    assert isinstance(raised.value.__cause__, FileError)


def test_columns_are_ids_first_then_scores(tmp_path):
    rows = [
        Row({"case": "a"}, {"dice": 1.0}),
        Row({"case": "b", "found": 2}, {"dice": 0.5, "f1": 0.25}, {"new_lesions": "both"}),
    ]
    Evaluation("new_lesions", "test", rows, {}).save(tmp_path)
    assert (tmp_path / "evaluation-test.csv").read_text().splitlines() == [
        "case,found,new_lesions_in,dice,f1",
        "a,,,1.0,",
        "b,2,both,0.5,0.25",
    ]

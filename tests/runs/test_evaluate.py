"""The table of an evaluation: what was measured, beside what the paper printed."""

import math

import pytest

from cmrfast import methods, metrics
from cmrfast.errors import FileError
from cmrfast.methods import Row
from cmrfast.runs.evaluate import Evaluation, evaluate
from cmrfast.runs.text import align_columns
from cmrfast.train import train
from tests.support import training_task


def test_table_sets_published_rows_beside_this_run():
    rows = [
        Row({"case": "a", "slice": 0}, {"scar_dice": 0.5, "myocardium_dice": 0.75}),
        Row({"case": "b", "slice": 0}, {"scar_dice": math.nan, "myocardium_dice": 0.85}),
    ]
    published = methods.get("joint_scar").published
    found = Evaluation("joint_scar", "test", rows, {"recall_of_all": 0.625}, published)
    assert found.table().splitlines() == [
        "joint_scar, test: mean (SD), beside the rows that were published",
        "                 this run     two_step  mtl    jdl",
        "scar_dice        0.50         -         -      -",
        "myocardium_dice  0.80 (0.07)  0.894     0.900  0.891",
        "recall_of_all    0.62         -         -      -",
        "scar_dice: 1 of 2 have no value",
    ]


def test_a_metric_that_only_the_paper_has_keeps_its_line():
    published = methods.get("siamese_lesion").published
    found = Evaluation("siamese_lesion", "test", [], {"balanced": 80.0}, published)
    lines = found.table().splitlines()
    assert lines[2].split() == ["balanced", "80.00", "50", "69.51", "78.96", "81.61"]
    assert lines[3].split() == ["sensitivity", "-", "100", "41.88", "59.83", "71.79"]
    assert found.beside_published()["sensitivity"][0] is None


def test_a_method_without_published_rows_has_its_own_column_only():
    found = Evaluation("new_lesions", "test", [Row({"case": "a"}, {"dice": 1.0})], {})
    assert found.table().splitlines() == [
        "new_lesions, test: mean (SD)",
        "      this run",
        "dice  1.00",
    ]


def test_a_metric_without_any_value_is_a_dash():
    found = Evaluation("new_lesions", "test", [Row({"case": "a"}, {"f1": math.nan})], {})
    assert found.table().splitlines()[2:] == [
        "f1  -",
        "f1: 1 of 1 have no value",
    ]
    assert found.summary()["f1"] == pytest.approx(
        metrics.Summary(math.nan, math.nan, math.nan, 0, 1), nan_ok=True
    )


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
    (run.path / "evaluation-test.json").write_text('{"rows": []}')
    with pytest.raises(FileError, match=r"^load_evaluation: .*is damaged or of an older"):
        Evaluation.load(run.path, "test")


def test_columns_are_ids_first_then_scores(tmp_path):
    rows = [
        Row({"case": "a"}, {"dice": 1.0}),
        Row({"case": "b", "found": 2}, {"dice": 0.5, "f1": 0.25}),
    ]
    Evaluation("new_lesions", "test", rows, {}).save(tmp_path)
    assert (tmp_path / "evaluation-test.csv").read_text().splitlines() == [
        "case,found,dice,f1",
        "a,,1.0,",
        "b,2,0.5,0.25",
    ]

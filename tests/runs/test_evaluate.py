"""The table of an evaluation: what was measured, beside what the paper printed."""

import math

import pytest

from cmrfast import metrics
from cmrfast.evaluate import Evaluation
from cmrfast.metrics.table import aligned
from cmrfast.tasks import task_class


def test_table_sets_published_rows_beside_this_run():
    rows = [
        {"case": "a", "slice": 0, "scar_dice": 0.5, "myocardium_dice": 0.75},
        {"case": "b", "slice": 0, "scar_dice": math.nan, "myocardium_dice": 0.85},
    ]
    published = task_class("joint_scar").published
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
    published = task_class("siamese_lesion").published
    found = Evaluation("siamese_lesion", "test", [], {"balanced": 80.0}, published)
    lines = found.table().splitlines()
    assert lines[2].split() == ["balanced", "80.00", "50", "69.51", "78.96", "81.61"]
    assert lines[3].split() == ["sensitivity", "-", "100", "41.88", "59.83", "71.79"]
    assert found.beside_published()["sensitivity"][0] is None


def test_a_method_without_published_rows_has_its_own_column_only():
    found = Evaluation("new_lesions", "test", [{"case": "a", "dice": 1.0}], {})
    assert found.table().splitlines() == [
        "new_lesions, test: mean (SD)",
        "      this run",
        "dice  1.00",
    ]


def test_a_metric_without_any_value_is_a_dash():
    found = Evaluation("new_lesions", "test", [{"case": "a", "f1": math.nan}], {})
    assert found.table().splitlines()[2:] == [
        "f1  -",
        "f1: 1 of 1 have no value",
    ]
    assert found.summary()["f1"] == pytest.approx(
        metrics.Summary(math.nan, math.nan, math.nan, 0, 1), nan_ok=True
    )


def test_aligned_breaks_heads_between_words_only_where_their_column_is_narrower():
    lines = [["", "one two overlong", "broad head"], ["a", "1", "as broad as it"]]
    assert aligned(lines, heads=7).splitlines() == [
        "   one two",
        "   overlong  broad head",
        "a  1         as broad as it",
    ]
    assert aligned(lines, right=True).splitlines() == [
        "   one two overlong      broad head",
        "a                 1  as broad as it",
    ]

"""Scores of joint_registration: Dice, distances in mm, their test, means of a patient."""

import math
from dataclasses import replace

import pytest
import torch

from cmrfast.methods import Objective, Row
from cmrfast.methods.joint_registration import METHOD
from cmrfast.methods.joint_registration.published import DISTANCES
from cmrfast.methods.joint_registration.task import PAIRS, JointRegistrationTask, _mean_dice
from cmrfast.models.joint_registration import RECIPE
from tests.support.joint_registration_cases import NARROW, SMALL, Knowing, oracle


@pytest.mark.parametrize(
    ("labels", "reference", "expected"),
    [
        ([1, 1, 0], [1, 1, 0], 1.0),  # two structures are in neither
        ([1, 2, 0], [1, 0, 3], 1 / 3),
        ([0, 0, 0], [0, 0, 0], math.nan),
    ],
)
def test_the_mean_dice_is_over_structures_that_either_has(labels, reference, expected):
    found = _mean_dice(torch.tensor([labels]), torch.tensor([reference]))
    assert found == pytest.approx(expected, nan_ok=True)


def test_an_oracle_scores_perfectly(cases):
    case = cases[1]
    task = JointRegistrationTask(NARROW, SMALL)
    pairs = task.prepared(PAIRS, case)
    model = Knowing((pairs["cine_labels"][:, None], pairs["lge_labels"][:, None])).eval()
    rows = task.evaluate(model, case)
    assert len(rows) == len(pairs["slices"])
    for row in rows:
        scores = row.scores
        assert row.case == case.name
        assert scores["cine_dice_percent"] == scores["lge_dice_percent"] == 100
        assert scores["lv_cd_mm"] == pytest.approx(scores["before_lv_cd_mm"])  # theta: identity
        assert scores["myocardium_asd_mm"] == scores["before_myocardium_asd_mm"]
    # The labels of one stack under both names: a registration that succeeded.
    task.prepared = lambda *_: pairs | {"lge_labels": pairs["cine_labels"]}
    for row in task.evaluate(model, case):
        assert row.scores["registration_loss"] < 2e-3
        for name in DISTANCES:
            assert row.scores[name] == 0 or math.isnan(row.scores[name])
    assert tuple(METHOD.published["before"].cells) == DISTANCES
    named = {name for published in METHOD.published.values() for name in published.cells}
    assert named <= rows[0].scores.keys()
    assert METHOD.objective == Objective("registration_loss", maximise=False)


def test_a_shift_is_measured_in_mm(cases):
    """A disc shifted by 4 pixels of 0.75 mm is 3 mm off, and theta brings it back."""
    at = torch.arange(64.0)
    disc = ((at[:, None] - 30) ** 2 + (at - 30) ** 2 < 100).byte()
    pairs = {
        "cine_labels": disc[None],
        "lge_labels": disc.roll(4, 1)[None],
        "slices": torch.tensor([[0, 2]]),
    }
    task = JointRegistrationTask(NARROW, RECIPE)
    back = torch.tensor([[[1.0, 0, 2 * 4 / 64], [0, 1, 0]]])
    (row,) = task._rows("patient1", {"theta": back}, pairs)
    assert row.scores["before_lv_cd_mm"] == pytest.approx(3.0)
    assert row.scores["lv_cd_mm"] == pytest.approx(0.0, abs=1e-6)
    assert row.scores["lv_asd_mm"] == 0
    assert math.isnan(row.scores["rv_cd_mm"])
    assert row.ids == {"case": "patient1", "cine_slice": 0, "lge_slice": 2}


def test_distances_are_tested_against_those_before():
    stats = pytest.importorskip("scipy.stats")
    before, after = [3.0, 4.0, 6.0, math.nan, 5.0], [1.0, 2.5, 3.0, 2.0, 4.5]
    rows = [
        Row({"case": "patient1"}, {f"{when}{name}": v for name in DISTANCES for when, v in pair})
        for pair in ((("before_", b), ("", a)) for b, a in zip(before, after, strict=True))
    ]
    found = JointRegistrationTask(NARROW, SMALL).pooled(rows)
    expected = stats.ttest_rel(before, after, nan_policy="omit").pvalue
    assert found.keys() == {f"{name}_p" for name in DISTANCES}
    assert list(found.values()) == pytest.approx([expected] * 5)


def test_patients_are_means_of_their_slices(cases):
    recipe = replace(SMALL, unit="patient")
    slices = JointRegistrationTask(NARROW, SMALL).evaluate(oracle(cases[0]), cases[0])
    (patient,) = JointRegistrationTask(NARROW, recipe).evaluate(oracle(cases[0]), cases[0])
    assert patient.ids == {"case": cases[0].name, "slices": len(slices)}
    values = [value for row in slices if not math.isnan(value := row.scores["rv_cd_mm"])]
    assert patient.scores["rv_cd_mm"] == pytest.approx(sum(values) / len(values))

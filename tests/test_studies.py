"""Studies: end to end at a tiny size, resuming, comparisons, and the tables of the results page."""

import dataclasses
import importlib
import json
import math
import sys

import pytest
import torch
from scipy import stats

from cmrfast import metrics
from cmrfast.data import Volume, open_dataset
from cmrfast.data.datasets import Split
from cmrfast.data.phantom import write_phantoms
from cmrfast.methods import Picture, Row
from cmrfast.runs.evaluate import Evaluation
from studies import comparisons, design, page
from studies.cohorts import Cohorts
from studies.outcome import Outcome
from studies.study import _Job, _power, require_different
from tests.support.paths import ROOT

STUDIES = page.all_studies()


def outcome(evaluations, scores=("dice",), planned=(), **told):
    study = design.Study(
        "new_lesions",
        {name: design.Arm({}) for name in evaluations},
        scores,
        planned,
        *[design.Scale((1, 1, 1))] * 3,
        **told,
    )
    return Outcome(study, study.small, "small", "phantoms", None, {}, evaluations)


def evaluated(*dice):
    rows = [Row({"case": str(n)}, {"dice": value}) for n, value in enumerate(dice)]
    return Evaluation("new_lesions", "test", rows, {})


def write_marks(file, *names):
    marks = [mark.format(name) for name in names for mark in (page.BEGIN, page.END)]
    file.write_text("\n".join(["before", *marks, "after"]))


def check_content(content, study):
    """Of a result file: the keys of each comparison, and that it follows from the measurements."""
    for compared, planned in zip(content["comparisons"], study.comparisons, strict=True):
        assert set(compared) == {
            *("claim", "first", "second", "score", "difference", "low", "high", "p", "p_holm"),
            *("verdict", "patients", "left_out", "seeds"),
        }
        assert compared["verdict"] == ("not decided" if planned.expected else "ours")
        if content["repeats"]:
            assert compared["seeds"] + compared["left_out"] == content["seeds"]
        else:
            assert compared["patients"] + compared["left_out"] == content["patients"]["test"]
            assert compared["seeds"] == content["seeds"]
    assert set(content["measurements"]) == set(content["arms"])
    for control in content["controls"]:
        assert set(control) == {"name", "value", "accept", "passed"}
    if content["seeds"] > 1:
        # After two steps some arms are equal, and nothing is too small to be found.
        assert all(power["detectable"] >= 0 for power in content["power"])
        assert any(power["detectable"] > 0 for power in content["power"])
        assert [p["score"] for p in content["power"]] == [p.score for p in study.comparisons]
    else:
        assert content["power"] == []
    again = {key: content[key] for key in ("method", "experiment", "repeats", "measurements")}
    comparisons.recompute(again)
    for key in ("comparisons", "other_scores"):
        assert comparisons.without_nan(again[key]) == content[key]


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.stem("tiny"))
def test_a_study_goes_from_nothing_to_its_page_and_again(study, tmp_path, monkeypatch, capsys):
    script = importlib.import_module(f"studies.{study.method}")
    monkeypatch.delenv("CMRFAST_TEST_DATA", raising=False)
    words = ["--scale", "tiny", "--out", str(tmp_path / "runs"), "--workers", "1"]
    words += ["--results", str(tmp_path / "results"), *filter(None, [study.experiment])]
    monkeypatch.setattr(sys, "argv", [study.method, *words])
    script.main()
    trainings = len(study.arms) * study.tiny.seeds
    assert f"{trainings} trainings, 0 of them done" in capsys.readouterr().out
    stem = study.stem("tiny")
    content = json.loads((tmp_path / "results" / f"{stem}.json").read_text())
    assert content["minutes"] > 0
    assert set(study.arms) <= set(content["arms"])
    assert all(any(arm["scores"].values()) for arm in content["arms"].values())
    for ending in ("", "-cases"):
        assert (tmp_path / "results" / f"{stem}{ending}.png").stat().st_size > 10_000
    check_content(content, study)
    write_marks(tmp_path / "README.md", "claims", stem)
    page.update(tmp_path / "README.md", tmp_path / "results", [])
    assert "| variant |" in (tmp_path / "README.md").read_text()
    script.main()
    said = capsys.readouterr().out
    assert f"{trainings} of them done before" in said
    again = json.loads((tmp_path / "results" / f"{stem}.json").read_text())
    assert again["arms"] == content["arms"]
    assert again["minutes"] is None


def test_scores_are_means_of_each_seed():
    found = outcome({"a": [evaluated(0.2, 0.4, math.nan), evaluated(0.5, 0.5, 0.5)]})
    assert found.by_seed("a") == {"dice": [pytest.approx(0.3), 0.5]}


def test_the_papers_test_averages_units_over_seeds_and_pairs_them_by_name():
    a = [evaluated(0.2, 0.4, math.nan), evaluated(0.4, 0.6, 0.9)]
    b = [evaluated(0.1, 0.5, math.nan)]
    paper = design.PaperTest("patients", ("case",), (("a", "b"),), ("dice",))
    found = outcome({"a": a, "b": b}, paper_test=paper)
    units = found.by_unit("a", "dice", ("case",))
    assert units == {("0",): pytest.approx(0.3), ("1",): 0.5, ("2",): 0.9}
    (test,) = found.as_the_paper_tested()
    assert (test["units"], test["unit"], test["difference"]) == (2, "patients", pytest.approx(0.1))
    assert outcome({"a": a}).as_the_paper_tested() == []


def sliced(*patients):
    """An evaluation with several slices of each patient."""
    rows = [
        Row({"case": str(n), "slice": k}, {"dice": value})
        for n, values in enumerate(patients)
        for k, value in enumerate(values)
    ]
    return Evaluation("new_lesions", "test", rows, {})


def planned(expected="higher", score="dice"):
    return design.Planned("a is better", "a", "b", score, expected)


def test_patients_are_measured_once_and_an_arm_without_training_counts_for_every_seed():
    a = [sliced([0.2, 0.4], [math.nan, 0.5], [math.nan]), sliced([0.6], [0.7, 0.9], [0.1])]
    found = outcome({"a": a, "b": [sliced([0.1], [0.2], [0.3])]})
    measured = comparisons.measure(found.study, found.evaluations)
    expected = {"0": [pytest.approx(0.3), 0.6], "1": [0.5, pytest.approx(0.8)], "2": [None, 0.1]}
    assert measured["a"]["dice"] == expected
    assert measured["b"]["dice"] == {"0": [0.1, 0.1], "1": [0.2, 0.2], "2": [0.3, 0.3]}
    (compared,) = comparisons.compare(
        dataclasses.replace(found.study, comparisons=(planned(),)), measured
    )
    assert compared["difference"] == pytest.approx((0.45 - 0.1 + 0.65 - 0.2) / 2)
    assert [compared[k] for k in ("patients", "left_out", "seeds")] == [2, 1, 2]
    assert compared["verdict"] == "not decided"


def test_a_clear_difference_gets_a_word_and_other_scores_an_interval():
    generator = torch.Generator().manual_seed(0)

    def arm(mean):
        seeds = []
        for _ in range(5):
            dice = (mean + 0.01 * torch.randn(20, generator=generator)).tolist()
            rows = [
                Row({"case": str(n)}, {"dice": value, "f1": value / 2})
                for n, value in enumerate(dice)
            ]
            seeds.append(Evaluation("new_lesions", "test", rows, {}))
        return seeds

    evaluations = {"a": arm(0.8), "b": arm(0.6)}
    for expected, verdict in (("higher", "reproduced"), ("lower", "contradicted"), (None, "ours")):
        found = outcome(evaluations, ("dice", "f1"), (planned(expected),))
        measured = comparisons.measure(found.study, evaluations)
        (compared,) = comparisons.compare(found.study, measured)
        assert compared["verdict"] == verdict
        assert compared["low"] < 0.2 < compared["high"]
        (other,) = comparisons.other_scores(found.study, measured)
        assert (other["score"], "verdict" in other) == ("f1", False)
        (power,) = comparisons.detectable(found.study, measured, patients=20, seeds=5)
        assert 0 < power["detectable"] < 0.05
        require_different([power])


def test_arms_that_do_not_differ_stop_a_study():
    planned = (design.Planned("does it help?", "new", "old", "dice"),)
    scores = [evaluated(0.1, 0.5, 0.7), evaluated(0.2, 0.3, 0.9)]
    found = outcome({"new": scores, "old": scores}, planned=planned)
    measured = comparisons.measure(found.study, found.evaluations)
    power = comparisons.detectable(found.study, measured, patients=20, seeds=5)
    with pytest.raises(SystemExit, match=r"new and old have the same dice of every patient"):
        require_different(power)


@pytest.mark.parametrize("repeats", [False, True])
def test_power_is_that_of_the_planned_test(repeats, tmp_path, monkeypatch):
    planned = (design.Planned("does it help?", "new", "old", "dice"),)
    scores = {
        "new": [evaluated(0.1, 0.5, 0.7), evaluated(0.2, 0.4, 0.9)],
        "old": [evaluated(0.2, 0.3, 0.6), evaluated(0.2, 0.2, 0.5)],
    }
    found = outcome(scores, planned=planned)
    scale = design.Scale((3, 0, 4), seeds=6, repeats=repeats)
    split = Split(("a", "b", "c"), (), ("p", "q", "r", "s"))
    job = _Job("", "new", 0, tmp_path, tmp_path, tmp_path, split, {}, None, 1, "cpu")
    monkeypatch.setattr("studies.study._evaluations", lambda *told: scores)
    (power,) = _power(found.study, scale, [job])
    cells = [
        {
            (row.ids["case"], seed): [row.scores["dice"]]
            for seed, evaluation in enumerate(own)
            for row in evaluation.rows
        }
        for own in scores.values()
    ]
    result = metrics.compare_arms(*cells)
    patients = 24 if repeats else 4
    assert (power["patients"], power["seeds"]) == (patients, 6)
    expected = result.detectable(patients=patients, seeds=6, repeats=repeats)
    assert power["detectable"] == pytest.approx(expected)
    text = page.power({"power": [power], "controls": [], "repeats": repeats})
    assert ("(24 patients in all, 6 repeats;" if repeats else "(4 patients, 6 seeds;") in text


@pytest.mark.parametrize(
    ("difference", "p_holm", "expected", "verdict"),
    [
        (1.0, 0.049, "higher", "reproduced"),
        (-1.0, 0.049, "higher", "contradicted"),
        (-1.0, 0.049, "lower", "reproduced"),
        (1.0, 0.05, "higher", "not decided"),
        (1.0, math.nan, "higher", "not decided"),
        (1.0, 0.001, None, "ours"),
    ],
)
def test_verdicts(difference, p_holm, expected, verdict):
    assert comparisons.choose_verdict(difference, p_holm, expected) == verdict


def test_pooled_scores_come_from_the_counts_of_patients():
    from studies import siamese_lesion

    def patch(case, lesion, probability):
        return Row({"case": case, "lesion": lesion}, {"probability": probability})

    rows = [patch("p", 1, 0.9), patch("p", 1, 0.2), patch("p", 0, 0.1), patch("q", 0, 0.7)]
    study = siamese_lesion.TABLE_1
    measured = comparisons.measure(study, {"pure": [Evaluation("", "test", rows, {})]})
    assert measured["pure"]["balanced"] == {"p": [[2, 1, 1, 1]], "q": [[0, 0, 1, 0]]}
    counts = [seeds[0] for seeds in measured["pure"]["balanced"].values()]
    assert study.pooled["balanced"].statistic(counts) == 50
    assert math.isnan(study.pooled["balanced"].statistic(counts[1:]))


def test_test_patients_without_the_structure_leave_a_fact_without_a_value(monkeypatch):
    from studies import called_new, joint_scar

    scores = [Row({"case": "p", "scar_pixels": 0}, {"scar_dice": 1.0})]
    clean = outcome({"jdl": [Evaluation("joint_scar", "test", scores, {})]})
    assert math.isnan(joint_scar.dice_with_scar(clean, "jdl")[0])
    assert joint_scar.percent_clean(clean, "jdl") == [100]
    scores[0] = Row({"case": "p", "scar_pixels": 5}, {"scar_dice": 0.5})
    assert math.isnan(joint_scar.percent_clean(clean, "jdl")[0])

    empty, full = (
        Volume(torch.full((1, 4, 4, 4), v, dtype=torch.uint8), torch.eye(4)) for v in (0, 1)
    )
    maps = {"new_lesion": Volume(torch.full((1, 4, 4, 4), 0.55), torch.eye(4))}
    nothing_new = Picture(empty, empty, empty, maps)
    assert called_new.f1_above(nothing_new, 0.5, found=0.1) == []
    new = Picture(empty, empty, full, maps)
    assert called_new.f1_above(new, 0.5, found=0.1) == [1]
    assert called_new.f1_above(new, 0.6, found=0.1) == [0]


def test_repeats_are_the_units_of_a_paired_test():
    def repeat(*dice):
        return [evaluated(*values) for values in dice]

    evaluations = {
        "a": repeat((0.6, 0.8), (0.9, 0.9), (0.5, math.nan), (math.nan, math.nan)),
        "b": repeat((0.4, 0.4), (0.6, 0.8), (0.3, 0.3), (0.5, 0.5)),
    }
    found = outcome(evaluations, planned=(planned(),))
    measured = comparisons.measure(found.study, evaluations, repeats=True)
    assert [v[0] for v in measured["a"]["dice"].values()] == [
        *(pytest.approx(value) for value in (0.7, 0.9, 0.5)),
        None,
    ]
    (compared,) = comparisons.compare(found.study, measured, repeats=True)
    test = stats.ttest_rel([0.7, 0.9, 0.5], [0.4, 0.7, 0.3])
    low, high = test.confidence_interval()
    assert compared["difference"] == pytest.approx(0.7 / 3)
    assert (compared["p"], compared["low"], compared["high"]) == (
        *(pytest.approx(value) for value in (test.pvalue, low, high)),
    )
    assert [compared[k] for k in ("patients", "left_out", "seeds")] == [3, 1, 3]
    named = {"method": "m", "experiment": "", "scale": "small", "repeats": True}
    text = page.claims([named | {"comparisons": [compared]}])
    assert "3 repeats of the whole experiment" in text


def test_repeats_that_share_patients_have_no_test():
    repeats = {"a": [evaluated(0.6), evaluated(0.9)], "b": [evaluated(0.4), evaluated(0.8)]}
    scores = ("dice", "f1")
    for evaluation in (*repeats["a"], *repeats["b"]):
        for row in evaluation.rows:
            row.scores["f1"] = row.scores["dice"]
    found = outcome(repeats, scores, (planned(),))
    measured = comparisons.measure(found.study, repeats, repeats=True)
    content = {"repeats": True, "resplit": True, "measurements": measured, "experiment": ""}
    again = {"method": "new_lesions", **content}
    for compared in (comparisons.compare, comparisons.other_scores):
        (line,) = compared(found.study, measured, repeats=True, resplit=True)
        assert line["difference"] == pytest.approx(0.15)
        assert math.isnan(line["low"])
        assert math.isnan(line["high"])
        assert math.isnan(line.get("p_holm", math.nan))
    (line,) = comparisons.compare(found.study, measured, repeats=True, resplit=True)
    assert line["verdict"] == "not decided"
    text = page.claims([again | {"scale": "paper", "comparisons": comparisons.without_nan([line])}])
    assert "2 repeats of the whole experiment on other splits of the same patients" in text
    assert "| +0.15; no test, as the repeats share patients |" in text


def test_ones_own_patients_are_split_again_without_validation_patients(tmp_path):
    subjects = tmp_path / "subjects"
    write_phantoms("t1_lge", subjects, cases=15, shrink=4)
    study = next(s for s in STUDIES if s.stem("small") == "siamese_lesion-small")
    cohorts = Cohorts(study, study.small, tmp_path, subjects)
    assert cohorts.resplit
    assert not Cohorts(study, study.small, tmp_path).resplit
    splits = [cohorts.split(study.arms["pure"], seed) for seed in range(2)]
    assert [[len(s.train), len(s.validate), len(s.test)] for s in splits] == [[13, 0, 2]] * 2
    assert splits[0] != splits[1]


@pytest.mark.parametrize(
    ("first", "second"),
    [((60, 70, 80), (65, 65, 80)), ((65, 65, 80), (65, 65, 80)), ((66, 66, 81), (65, 65, 80))],
    ids=["mean of 0", "no difference", "equal differences"],
)
def test_repeats_have_an_interval_whatever_their_differences(first, second):
    evaluations = {"a": [evaluated(x) for x in first], "b": [evaluated(x) for x in second]}
    found = outcome(evaluations, planned=(planned(),))
    measured = comparisons.measure(found.study, evaluations, repeats=True)
    (compared,) = comparisons.compare(found.study, measured, repeats=True)
    d = [a - b for a, b in zip(first, second, strict=True)]
    mean, margin = sum(d) / 3, stats.t.ppf(0.975, 2) * stats.sem(d)
    expected = [pytest.approx(x) for x in (mean, mean - margin, mean + margin)]
    assert [compared[key] for key in ("difference", "low", "high")] == expected


def test_a_single_repeat_has_no_interval():
    evaluations = {"a": [evaluated(0.5)], "b": [evaluated(0.4)]}
    found = outcome(evaluations, planned=(planned(),))
    measured = comparisons.measure(found.study, evaluations, repeats=True)
    (compared,) = comparisons.compare(found.study, measured, repeats=True)
    assert compared["difference"] == pytest.approx(0.1)
    assert math.isnan(compared["low"])


def test_each_seed_draws_its_training_patients_and_shares_the_test_patients(tmp_path):
    arms = {"a": design.Arm({}), "b": design.Arm({}, patients=0.5, others_validate=True)}
    study = outcome(arms).study
    study = dataclasses.replace(study, arms=arms, method="siamese_lesion")
    names = {}
    for repeats in (False, True):
        scale = design.Scale((4, 1, 2), seeds=2, repeats=repeats, shrink=4)
        cohorts = Cohorts(study, scale, tmp_path / str(repeats))
        cohorts.prepare(lambda text: None)
        splits = [[cohorts.split(arm, seed) for arm in arms.values()] for seed in range(2)]
        for all_train, half in splits:
            assert (len(all_train.train), len(all_train.validate)) == (4, 1)
            assert (len(half.train), len(half.validate)) == (2, 3)
            assert all_train.test == half.test
        used = [{*s.train, *s.validate} for (s, _) in splits]
        assert not used[0] & used[1]
        tested = [set(s.test) for (s, _) in splits]
        assert (tested[0] == tested[1]) is not repeats
        names[repeats] = used[0] | used[1] | tested[0] | tested[1]
        assert names[repeats] == set(open_dataset("t1_lge", cohorts.root(arms["a"])).names)
        assert not cohorts.pilot(arms["a"]).samefile(cohorts.root(arms["a"]))


def test_phantoms_of_their_own_are_for_arms_without_own_data(tmp_path):
    study = next(study for study in STUDIES if study.experiment == "contrast")
    with pytest.raises(SystemExit, match="contrast compares phantoms; leave --data out"):
        Cohorts(study, study.small, tmp_path, tmp_path)


def test_protocols_of_adversarial_transfer_lend_masks_as_the_paper_says(tmp_path):
    study = next(s for s in STUDIES if s.stem("small") == "adversarial_transfer-small")
    split = study.split(tuple("abcde"), (), tuple("ABCDEFGH"))
    assert set(split.train.unlabelled) == set("ABCDEF")
    assert set(split.train.sequences["A"]) == {"C0", "T2"}
    assert set(split.train.sequences["a"]) == {"C0", "T2", "LGE"}
    assert set(split.test.sequences) == set("ABCDEFGH")


def test_a_study_refuses_more_comparisons_than_five_and_unknown_names():
    with pytest.raises(ValueError, match="comparisons must be at most 5; got 6"):
        outcome({"a": [], "b": []}, planned=(planned(),) * 6)
    with pytest.raises(ValueError, match="must name arms and scores of the study; got a, b, f1"):
        outcome({"a": [], "b": []}, planned=(planned(score="f1"),))


@pytest.mark.parametrize("file", sorted((ROOT / "studies" / "results").glob("*.json")), ids=str)
def test_committed_comparisons_are_those_planned(file):
    content = json.loads(file.read_text("utf-8"))
    study = comparisons.study_of(content)
    for compared, planned in zip(content["comparisons"], study.comparisons, strict=True):
        for key in ("claim", "first", "second", "score"):
            assert compared[key] == getattr(planned, key)
    again = json.loads(file.read_text("utf-8"))
    comparisons.recompute(again)
    assert_close(comparisons.without_nan(again), content)


def assert_close(found, expected):
    """Equal but for the last digits, which depend on how a Python adds."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_close(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)
    else:
        assert found == expected

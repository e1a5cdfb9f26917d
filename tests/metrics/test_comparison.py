"""Arms compared over patients and seeds: by brute force, by invariances, by simulation."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cmrfast import metrics
from tests.support.masks import same


def arm(table):
    """{(patient, seed): [value]} of a (patients, seeds) table."""
    return {
        (f"p{i}", s): [float(v)]
        for i, row in enumerate(np.asarray(table))
        for s, v in enumerate(row)
    }


def zeros(table):
    return arm(np.zeros_like(table))


def numbers(result):
    return torch.tensor([result.difference, result.low, result.high, result.p], dtype=torch.float64)


@st.composite
def tables(draw):
    """A (patients, seeds) table whose patients, seeds and noise vary each by its own amount."""
    patients, seeds = draw(st.integers(2, 9)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    scales = [draw(st.sampled_from([0.0, 0.1, 1.0, 10.0])) for _ in range(2)]
    shapes = [(patients, 1), (1, seeds), (patients, seeds)]
    parts = [
        scale * rng.standard_normal(s) for scale, s in zip([*scales, 1.0], shapes, strict=True)
    ]
    return sum(parts) + 0.5


@given(tables())
def test_equals_sums_written_out(d):
    p, s = d.shape
    mean = sum(d[i, j] for i in range(p) for j in range(s)) / (p * s)
    rows = [sum(d[i]) / s for i in range(p)]
    columns = [sum(d[:, j]) / p for j in range(s)]
    msp = s * sum((r - mean) ** 2 for r in rows) / (p - 1)
    mss = p * sum((c - mean) ** 2 for c in columns) / (s - 1)
    mse = sum((d[i, j] - rows[i] - columns[j] + mean) ** 2 for i in range(p) for j in range(s)) / (
        (p - 1) * (s - 1)
    )
    total, freedom = mse, (p - 1) * (s - 1)
    if msp + mss - mse > mse:
        total = msp + mss - mse
        freedom = total**2 / (msp**2 / (p - 1) + mss**2 / (s - 1) + mse**2 / freedom)
    error = (total / (p * s)) ** 0.5
    result = metrics.compare_arms(arm(d), zeros(d))
    margin = stats.t.ppf(0.975, freedom) * error
    expected = [mean, mean - margin, mean + margin, 2 * stats.t.sf(abs(mean) / error, freedom)]
    same(numbers(result), expected)
    same([*result.mean_squares, result.freedom], [msp, mss, mse, freedom])
    assert (result.patients, result.left_out, result.seeds) == (p, 0, s)


@given(tables())
def test_does_not_depend_on_order_or_level_and_swapping_changes_the_sign(d):
    level = np.arange(d.size).reshape(d.shape)
    first, second = arm(d), zeros(d)
    result = metrics.compare_arms(first, second)
    assert metrics.compare_arms(dict(reversed(first.items())), second) == result
    swapped = metrics.compare_arms(second, first)
    same(numbers(swapped), [-result.difference, -result.high, -result.low, result.p])
    same(numbers(metrics.compare_arms(arm(d + level), arm(level))), numbers(result))
    scaled = metrics.compare_arms(arm(3 * d), second)
    same(numbers(scaled)[:3], 3 * numbers(result)[:3])
    same(scaled.p, result.p)


@given(tables())
def test_the_mean_as_a_function_is_the_mean(d):
    result = metrics.compare_arms(arm(d), zeros(d), statistic=mean)
    same(numbers(result), numbers(metrics.compare_arms(arm(d), zeros(d))))


def test_measurements_of_a_patient_count_once():
    d = np.random.default_rng(0).standard_normal((4, 3))
    many = {key: torch.tensor([values[0] - 1, math.nan, values[0] + 1] * 50)
            for key, values in arm(d).items()}  # fmt: skip
    plain = metrics.compare_arms(arm(d), zeros(d))
    torch.testing.assert_close(
        numbers(metrics.compare_arms(many, zeros(d))), numbers(plain), rtol=1e-5, atol=1e-5
    )  # the measurements are in float32


def mean(values):
    return sum(values) / len(values)


NOTHING = {
    "empty": [],
    "NaN": [math.nan, math.nan],
    "NumPy": np.full(1, np.nan, np.float32),
    "tensor": torch.full((2, 2), torch.nan),
}


@pytest.mark.parametrize("missing", NOTHING.values(), ids=list(NOTHING))
@pytest.mark.parametrize("of_first", [True, False])
@pytest.mark.parametrize("statistic", ["mean", mean], ids=["mean", "function"])
def test_a_patient_without_a_value_is_excluded_and_counted(missing, of_first, statistic):
    d = np.random.default_rng(1).standard_normal((5, 3))
    arms = [arm(d), zeros(d)]
    arms[not of_first]["p4", 1] = missing
    result = metrics.compare_arms(*arms, statistic=statistic)
    assert (result.patients, result.left_out) == (4, 1)
    expected = metrics.compare_arms(arm(d[:4]), zeros(d[:4]), statistic=statistic)
    same(numbers(result), numbers(expected))


def test_a_function_gets_nan_that_is_not_all_of_a_cell():
    d = np.random.default_rng(1).standard_normal((5, 3))
    first = arm(d) | {("p4", 1): [math.nan, d[4, 1]]}
    result = metrics.compare_arms(first, zeros(d), statistic=np.nanmean)
    assert result.left_out == 0
    same(numbers(result), numbers(metrics.compare_arms(arm(d), zeros(d))))


def balanced(pairs):
    predicted, lesion = torch.tensor(pairs).T
    return metrics.balanced_accuracy(predicted, lesion).balanced


def test_pooled_score_is_that_of_each_seed_and_its_pseudo_values_are_the_jackknifes():
    rng = np.random.default_rng(2)
    arms = [
        {(p, s): rng.integers(0, 2, (n, 2)).tolist() for p, n in enumerate((9, 14, 8, 20))
         for s in range(3)} for _ in range(2)
    ]  # fmt: skip
    whole = [
        np.mean([balanced([v for p in range(4) for v in cells[p, s]]) for s in range(3)])
        for cells in arms
    ]
    result = metrics.compare_arms(*arms, statistic=balanced)
    assert result.difference == pytest.approx(whole[0] - whole[1])

    def pseudo(cells, p, s):
        others = balanced([v for q in range(4) if q != p for v in cells[q, s]])
        return 4 * balanced([v for q in range(4) for v in cells[q, s]]) - 3 * others

    d = np.array([[pseudo(arms[0], p, s) - pseudo(arms[1], p, s) for s in range(3)]
                  for p in range(4)])  # fmt: skip
    same(result.standard_error, metrics.compare_arms(arm(d), zeros(d)).standard_error)


def test_without_an_answer():
    one_seed = metrics.compare_arms(arm([[1.0], [2.0]]), zeros([[1.0], [2.0]]))
    one_patient = metrics.compare_arms(arm([[1.0, 2.0]]), zeros([[1.0, 2.0]]))
    for result in (one_seed, one_patient):
        assert result.difference == 1.5
        assert all(math.isnan(x) for x in (result.low, result.high, result.p, result.freedom))
        assert math.isnan(result.detectable())
    for statistic in ("mean", len):
        nobody = metrics.compare_arms({("p", 0): []}, {("p", 0): [1.0]}, statistic=statistic)
        assert math.isnan(nobody.difference)
        assert (nobody.patients, nobody.left_out, nobody.seeds) == (0, 1, 1)
    only_one = metrics.compare_arms(arm([[1.0, 3.0]]), arm([[1.0, 1.0]]), statistic=sum)
    assert (only_one.difference, only_one.patients) == (1.0, 1)
    d = np.random.default_rng(3).standard_normal((3, 2))
    undefined = metrics.compare_arms(arm(d), zeros(d), statistic=lambda values: math.nan)
    assert math.isnan(undefined.difference)
    assert math.isnan(undefined.p)


def test_equal_differences():
    same_twice = np.ones((3, 2))
    equal = metrics.compare_arms(arm(same_twice), arm(same_twice))
    assert (equal.difference, equal.low, equal.high) == (0, 0, 0)
    assert math.isnan(equal.p)
    apart = metrics.compare_arms(arm(same_twice), zeros(same_twice))
    assert (apart.difference, apart.low, apart.high, apart.p) == (1, 1, 1, 0)


GRID = {(p, s): [1.0] for p in "ab" for s in (0, 1)}
WRONG = {
    "keys of second must be pairs (patient, seed); got 'a'": (GRID, {"a": [1.0]}, "mean"),
    "must have at least one patient and seed; got 0 and 4 entries": ({}, GRID, "mean"),
    "must have the same patients and seeds; got ('c', 0) in one of them only": (
        GRID, GRID | {("c", 0): [1.0]}, "mean",
    ),
    "must have an entry for every seed, an empty one if it has no value; got none for ('c', 1)": (
        GRID | {("c", 0): [1.0]}, GRID | {("c", 0): [1.0]}, "mean",
    ),
    "measurements must be finite or NaN; got inf for ('a', 0)": (
        GRID, GRID | {("a", 0): [1.0, -math.inf]}, "mean",
    ),
    "statistic must be \"mean\" or a function; got 'median'": (GRID, GRID, "median"),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_messages(message):
    first, second, statistic = WRONG[message]
    with pytest.raises(ValueError, match=f"^compare_arms: .*{re.escape(message)}$"):
        metrics.compare_arms(first, second, statistic=statistic)


REGIMES = {"patients": (3.0, 0.3, 1.0), "seeds": (0.3, 3.0, 1.0), "noise": (0.0, 0.0, 1.0)}


def simulate(rng, regime, patients, seeds):
    shapes = [(patients, 1), (1, seeds), (patients, seeds)]
    return sum(
        scale * rng.standard_normal(shape)
        for scale, shape in zip(REGIMES[regime], shapes, strict=True)
    )


@pytest.mark.parametrize("regime", REGIMES)
def test_arms_that_do_not_differ_are_rarely_called_different(regime):
    rng = np.random.default_rng(5)
    called = 0
    for _ in range(400):
        d = simulate(rng, regime, 20, 5)
        called += metrics.compare_arms(arm(d), zeros(d)).p < 0.05
    assert called / 400 <= 0.08


def test_pooled_scores_that_do_not_differ_are_rarely_called_different():
    rng = np.random.default_rng(6)

    def f1(counts):
        true, false, missed = np.sum(counts, axis=0)
        return 2 * true / (2 * true + false + missed)

    def simulate_arm(patient, seeds):
        skill = patient[:, None] + 0.5 * rng.standard_normal(seeds)  # in each patient and seed
        chance = 1 / (1 + np.exp(-skill))
        true, false = rng.binomial(lesions[:, None], chance), rng.poisson(2 * (1 - chance))
        missed = lesions[:, None] - true
        return {
            (p, s): [(true[p, s], false[p, s], missed[p, s])] for p, s in np.ndindex(true.shape)
        }

    called = 0
    for _ in range(200):
        lesions = 1 + rng.poisson(4, 20)
        patient = rng.standard_normal(20)
        arms = [simulate_arm(patient, 5) for _ in range(2)]
        called += metrics.compare_arms(*arms, statistic=f1).p < 0.05
    assert called / 200 <= 0.08


@pytest.mark.parametrize("regime", ["patients", "seeds"])  # for noise alone it is conservative
def test_a_detectable_difference_is_found_as_often_as_promised(regime):
    of_patients, of_seeds, of_noise = (scale**2 for scale in REGIMES[regime])
    terms = of_patients / 20, of_seeds / 5, of_noise / 100
    freedom = sum(terms) ** 2 / (terms[0] ** 2 / 19 + terms[1] ** 2 / 4)
    effect = sum(terms) ** 0.5 * sum(stats.t.ppf(q, freedom) for q in (0.975, 0.8))
    rng = np.random.default_rng(7)
    found = 0
    for _ in range(200):
        d = effect + simulate(rng, regime, 20, 5)
        found += metrics.compare_arms(arm(d), zeros(d)).p < 0.05
    assert found / 200 == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize("regime", REGIMES)
def test_a_large_difference_is_found(regime):
    d = 12 + simulate(np.random.default_rng(8), regime, 20, 5)
    result = metrics.compare_arms(arm(d), zeros(d))
    assert result.p < 0.05
    assert 0 < result.low < 12 < result.high


@given(tables())
def test_detectable_difference_is_two_quantiles_of_standard_errors(d):
    result = metrics.compare_arms(arm(d), zeros(d))
    patients, seeds, residual = result.mean_squares
    if min(patients, seeds) >= residual:  # otherwise a variance that is estimated below 0 is cut
        quantiles = sum(stats.t.ppf(q, result.freedom) for q in (0.975, 0.8))
        same(result.detectable(), quantiles * result.standard_error)
    assert result.detectable(power=0.9) > result.detectable()
    assert result.detectable(patients=50, seeds=50) < result.detectable(patients=2, seeds=2)


def test_pilot_estimates_the_detectable_difference_of_a_larger_study():
    rng = np.random.default_rng(8)
    d = 2.0 * rng.standard_normal((400, 1)) + rng.standard_normal((400, 30))
    d = d + rng.standard_normal((1, 30))
    pilot = metrics.compare_arms(arm(d), zeros(d))
    variance = 4 / 20 + 1 / 5 + 1 / 100
    freedom = variance**2 / ((4 / 20) ** 2 / 19 + (1 / 5) ** 2 / 4)
    expected = variance**0.5 * sum(stats.t.ppf(q, freedom) for q in (0.975, 0.8))
    assert pilot.detectable(patients=20, seeds=5) == pytest.approx(expected, rel=0.2)
    with pytest.raises(ValueError, match="must be at least 2; got 20 and 1"):
        pilot.detectable(patients=20, seeds=1)
    with pytest.raises(ValueError, match=r"power must lie in \(0, 1\); got 1"):
        pilot.detectable(power=1)


@pytest.mark.parametrize("regime", REGIMES)
def test_repeats_find_the_difference_that_pilots_say_as_often_as_promised(regime):
    """10 repeats of 2 patients. With 2 seeds, a pilot is right only in the mean of squares."""
    rng = np.random.default_rng(9)
    stated = []
    for _ in range(400):
        d = simulate(rng, regime, 10, 2)
        pilot = metrics.compare_arms(arm(d), zeros(d))
        stated.append(pilot.detectable(patients=20, seeds=10, repeats=True))
    effect, found = np.mean(np.square(stated)) ** 0.5, 0
    for _ in range(1000):
        repeats = [effect + simulate(rng, regime, 2, 1).mean() for _ in range(10)]
        found += metrics.paired_t_test(repeats, [0.0] * 10).p < 0.05
    assert 0.7 <= found / 1000 <= 0.9


@given(tables(), st.integers(1, 5), st.integers(2, 9))
def test_what_repeats_detect_is_two_quantiles_of_the_standard_error_over_repeats(d, each, repeats):
    result = metrics.compare_arms(arm(d), zeros(d))
    patients, seeds, residual = result.mean_squares
    of_patients = max(0, patients - residual) / d.shape[1]
    of_seeds = max(0, seeds - residual) / d.shape[0]
    variance = of_seeds / repeats + (of_patients + residual) / (each * repeats)
    quantiles = sum(stats.t.ppf(q, repeats - 1) for q in (0.975, 0.8))
    found = result.detectable(patients=each * repeats, seeds=repeats, repeats=True)
    same(found, quantiles * variance**0.5)


def test_each_repeat_has_a_patient():
    result = metrics.compare_arms(GRID, GRID)
    with pytest.raises(ValueError, match=r"with repeats, patients .*; got 4 and 5"):
        result.detectable(patients=4, seeds=5, repeats=True)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_equals_its_definition(p_values):
    m = len(p_values)
    order = sorted(range(m), key=lambda n: p_values[n])
    expected = list(p_values)
    for rank, n in enumerate(order):
        expected[n] = min(1, max((m - k) * p_values[order[k]] for k in range(rank + 1)))
    assert metrics.holm(p_values) == expected


def test_holm_counts_tests_without_an_answer():
    assert metrics.holm([0.01, math.nan])[0] == 0.02
    assert math.isnan(metrics.holm([0.01, math.nan])[1])
    with pytest.raises(ValueError, match=r"p_values must lie in \[0, 1\] or be NaN; got 1.5"):
        metrics.holm([1.5])

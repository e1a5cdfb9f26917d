"""Paired t-tests against SciPy."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cmrfast import metrics
from cmrfast.metrics.paired import student_p
from tests.support.masks import same


@pytest.mark.parametrize("count", [2, 3, 10, 45, 1000])
@pytest.mark.parametrize("shift", [0.0, 0.2, 3.0])
def test_paired_t_test_equals_scipy(count, shift):
    first, second = torch.randn(count).double(), torch.randn(count).double() + shift
    expected = stats.ttest_rel(first, second)
    ours = metrics.paired_t_test(first, second)
    same([ours.t, ours.p], [expected.statistic, expected.pvalue])
    assert ours.cases == count
    with_gap = metrics.paired_t_test([*first, math.nan], [*second, 1.0])
    assert with_gap == ours


@given(st.integers(1, 5000), st.floats(1e-6, 1e3))
def test_students_tail_equals_scipy(freedom, t):
    expected = 2 * stats.t.sf(t, freedom)
    assert student_p(t, freedom) == pytest.approx(expected, rel=1e-8, abs=1e-300)


def test_t_test_without_an_answer():
    assert math.isnan(metrics.paired_t_test([1.0], [2.0]).p)
    assert math.isnan(metrics.paired_t_test([1.0, 2.0], [1.0, 2.0]).p)
    assert metrics.paired_t_test([1.0, 2.0], [3.0, 4.0]) == (-math.inf, 0.0, 2)

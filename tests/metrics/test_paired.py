"""Paired t-tests against SciPy."""

import math

import pytest
import torch
from scipy import stats

from cmrfast import metrics
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


def test_t_test_without_an_answer():
    assert math.isnan(metrics.paired_t_test([1.0], [2.0]).p)
    assert math.isnan(metrics.paired_t_test([1.0, 2.0], [1.0, 2.0]).p)
    assert metrics.paired_t_test([1.0, 2.0], [3.0, 4.0]) == (-math.inf, 0.0, 2)

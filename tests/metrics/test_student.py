"""Student's t distribution against SciPy."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cmrfast.metrics.student import student_p, student_quantile

FREEDOM = st.floats(0.3, 1e4)


@given(FREEDOM, st.floats(1e-6, 1e3))
def test_two_sided_p_equals_scipy(freedom, t):
    expected = 2 * stats.t.sf(t, freedom)
    assert student_p(t, freedom) == pytest.approx(expected, rel=1e-10, abs=1e-300)
    assert student_p(-t, freedom) == student_p(t, freedom)


@given(FREEDOM, st.floats(0.01, 0.9999))
def test_quantile_equals_scipy(freedom, probability):
    expected = stats.t.ppf(probability, freedom)
    assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_limits():
    assert student_p(0.0, 3) == 1
    assert student_p(math.inf, 3) == student_p(-math.inf, 3) == 0
    assert math.isnan(student_p(math.nan, 3))
    assert student_quantile(0.5, 3) == 0


@pytest.mark.parametrize("probability", [0.0, 1.0, 1.5, math.nan])
def test_a_probability_that_is_none_is_refused(probability):
    with pytest.raises(ValueError, match=r"probability must lie in \(0, 1\)"):
        student_quantile(probability, 3)

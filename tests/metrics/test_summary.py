"""What a table prints of a column."""

import math

from cmrfast import metrics


def test_a_summary_leaves_out_what_has_no_value():
    assert metrics.summarise([2.0, math.nan, 4.0, 9.0]) == (5.0, math.sqrt(13), 4.0, 3, 1)

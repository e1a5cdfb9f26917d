"""Which slice of one stack lends its mask to which of another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrfast.data.prepare import transfer_slices


def test_slice_maps_of_paper_and_code():
    assert transfer_slices(9, 15) == [0, 1, 3, 5, 6, 8, 10, 11, 13]
    assert transfer_slices(9, 15, form="code") == [1, 2, 4, 6, 7, 9, 11, 12, 14]


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["paper", "code"]))
def test_slice_maps_stay_inside_and_in_order(source, target, form):
    slices = transfer_slices(source, target, form=form)
    assert len(slices) == source
    assert slices == sorted(slices)
    assert 0 <= slices[0] <= slices[-1] < target


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: transfer_slices(0, 3), ValueError, "must have slices; got 0 and 3"),
        (lambda: transfer_slices(3, 3, form="x"), ValueError, "paper, code; got 'x'"),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()

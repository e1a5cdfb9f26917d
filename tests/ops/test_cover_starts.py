"""Starts of patches that cover an image."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrfast import ops


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 39))
def test_cover_leaves_no_voxel_out(shape, size, overlap):
    if size > shape or overlap >= size:
        with pytest.raises(ValueError, match="cover_starts"):
            ops.cover_starts((shape,), (size,), overlap)
        return
    starts = ops.cover_starts((shape,), (size,), overlap).flatten().tolist()
    assert starts[0] == 0
    assert starts[-1] == shape - size
    assert all(b - a <= size - overlap for a, b in pairwise(starts))


def test_floats_are_refused_by_name():
    for name, arguments in (
        ("shape", ((8.0, 8), (2, 2), 1)),
        ("size", ((8, 8), (2, 2.0), 1)),
        ("overlap", ((8, 8), (2, 2), 0.5)),
    ):
        with pytest.raises(TypeError, match=f"^cover_starts: {name} must be integers; got"):
            ops.cover_starts(*arguments)

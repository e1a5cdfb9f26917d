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

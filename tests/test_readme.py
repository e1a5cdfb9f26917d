"""What the README shows is run as it stands there."""

import pytest

from tests.support.markdown import blocks, run_python
from tests.support.paths import ROOT

BLOCKS = blocks(ROOT / "README.md", "python")


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_python_blocks_run(block):
    run_python(block, {})


def test_there_is_something_to_run():
    assert BLOCKS

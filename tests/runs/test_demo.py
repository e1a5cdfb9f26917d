"""The demo: from nothing to a report."""

import pytest

from cmrfast.demo import demo
from cmrfast.evaluate import evaluate


@pytest.mark.slow
def test_the_demo_learns_and_reports(tmp_path):
    said = []
    run = demo(tmp_path / "demo", say=said.append)
    assert (run.path / "report.html").exists()
    assert evaluate(run).summary()["dice_percent"].mean > 60
    assert "cmrfast predict" in said[-1]

"""The demo: from nothing to a report."""

import pytest

from cmrfast.runs.demo import demo
from cmrfast.runs.evaluate import evaluate


@pytest.mark.slow
def test_the_demo_learns_and_reports(tmp_path):
    said = []
    run = demo(tmp_path / "demo", say=said.append)
    assert (run.path / "report.html").exists()
    assert evaluate(run).summary()["dice_percent"].mean > 60
    assert "cmrfast predict" in said[-1]
    table = next(text for text in said if text.startswith("adversarial_transfer, test: 2 patients"))
    assert "note: The patients are synthetic" in table
    said.clear()
    again = demo(tmp_path / "demo", say=said.append)  # in its own folder: nothing is done twice
    assert again.checkpoint().digest == run.checkpoint().digest
    assert table in said

"""What is done with a trained run: predictions, scores, a report, views, a check of its bits."""

from cmrfast.runs.compare import compare
from cmrfast.runs.demo import demo
from cmrfast.runs.evaluate import Evaluation, evaluate
from cmrfast.runs.predict import Outcome, predict
from cmrfast.runs.report import report
from cmrfast.runs.verify import Verification, verify
from cmrfast.runs.view import CaseOptions, view_case, view_files
from cmrfast.runs.weights import demo_weights

__all__ = [
    "CaseOptions",
    "Evaluation",
    "Outcome",
    "Verification",
    "compare",
    "demo",
    "demo_weights",
    "evaluate",
    "predict",
    "report",
    "verify",
    "view_case",
    "view_files",
]

"""What is done with a trained run: predictions, scores, a report."""

from cmrfast.runs.compare import compare
from cmrfast.runs.demo import demo
from cmrfast.runs.evaluate import Evaluation, evaluate
from cmrfast.runs.predict import Outcome, predict
from cmrfast.runs.report import report

__all__ = ["Evaluation", "Outcome", "compare", "demo", "evaluate", "predict", "report"]

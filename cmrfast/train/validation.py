"""Scoring a network on the validation patients while it trains."""

import logging
import math
from collections.abc import Sequence

import torch

from cmrfast.data.datasets.case import Case
from cmrfast.errors import FileError, NotFiniteError
from cmrfast.methods import AnyTask, Objective, Row
from cmrfast.train.network import TrainingNetwork
from cmrfast.train.ranks import Ranks

_log = logging.getLogger(__name__)


class Validation:
    """The validation patients that can be scored, shared by the ranks.

    Args:
        task: scores a patient.
        objective: the score that counts.
        cases: the validation patients.
        ranks: that train together.
    """

    def __init__(
        self, task: AnyTask, objective: Objective, cases: Sequence[Case], ranks: Ranks
    ) -> None:
        self.task, self.objective, self.cases, self.ranks = task, objective, list(cases), ranks

    def leave_out_unscorable(self) -> None:
        """Leave out and name the patients whose files cannot be used."""
        ranks, refused = self.ranks, []
        for number in range(ranks.rank, len(self.cases), ranks.count):
            case = self.cases[number]
            try:
                self.task.require_scorable(case)
            except FileError as error:
                refused.append(number)
                _left_out(case, error)
        left_out = {number for part in ranks.gather(refused) for number in part}
        self.cases = [case for n, case in enumerate(self.cases) if n not in left_out]

    def score(self, network: TrainingNetwork, step: int) -> float:
        """The mean of the objective over the patients, higher is better.

        It is NaN where none can be scored, or where the network overflows for one of them.
        """
        network.model.eval()
        # Where weights are sharded every forward takes all ranks, so all evaluate all patients.
        own = self.cases if network.sharded else self.cases[self.ranks.rank :: self.ranks.count]
        rows: list[Row] = []
        finite = True
        for case in own:
            try:
                with torch.no_grad():
                    rows += self.task.evaluate(network.model, case)
            except FileError as error:
                _left_out(case, error)
            except NotFiniteError as error:  # raised by a network that takes another's output
                _log.warning("train: step %d has no score: %s: %s", step, case.name, error)
                finite = False
        network.model.train()
        parts = self.ranks.gather((rows, finite))
        if not all(fine for _, fine in parts):
            return math.nan
        return self.objective.merit(self.objective.mean([row for part, _ in parts for row in part]))


def _left_out(case: Case, error: FileError) -> None:
    _log.warning("train: %s is left out of validation: %s", case.name, error)

"""The outcome of a study: scores by arm and seed, comparisons, and its result file."""

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import cmrfast
from cmrfast import methods, metrics
from cmrfast.runs.evaluate import Evaluation
from cmrfast.train import Run
from studies import comparisons
from studies.design import Control, Study

Unit = tuple[Any, ...]


@dataclass
class Outcome:
    """All trainings of a study, scored on the same test patients.

    Args:
        study: what was compared.
        scale: small or paper.
        data: description of the training data.
        results: folder for the result files.
        runs: the runs of each arm, one per seed.
        evaluations: the evaluations of each arm, one per seed; more arms may be added.
        power: what each planned comparison can find, from a pilot; empty without one.
        seconds: duration of the study, None if parts of it had been done before.
        facts: findings that are not scores of an arm.
        controls: whether the data can answer the study's question.
    """

    study: Study
    scale: str
    data: str
    results: Path
    runs: Mapping[str, Sequence[Run]]
    evaluations: dict[str, list[Evaluation]]
    power: Sequence[Mapping[str, Any]] = ()
    seconds: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    controls: list[Control] = field(default_factory=list)

    def by_seed(self, arm: str) -> dict[str, list[float]]:
        """Each score's mean for each seed: {score: one value per seed}."""
        summaries = [evaluation.summary() for evaluation in self.evaluations[arm]]
        return {
            name: [summary[name].mean for summary in summaries]
            for name in self.study.scores
            if all(name in summary for summary in summaries)
        }

    def by_unit(self, arm: str, score: str, ids: Sequence[str]) -> dict[Unit, float]:
        """The score of each unit of rows, averaged over the seeds that have a value."""
        values: dict[Unit, list[float]] = {}
        for evaluation in self.evaluations[arm]:
            for row in evaluation.rows:
                value = row.scores.get(score, math.nan)
                if not math.isnan(value):
                    unit = tuple(row.ids[key] for key in ids)
                    values.setdefault(unit, []).append(value)
        return {unit: sum(scores) / len(scores) for unit, scores in values.items()}

    def as_the_paper_tested(self) -> list[dict[str, Any]]:
        """The paper's paired t-tests, over the units that both arms have."""
        paper = self.study.paper_test
        if paper is None:
            return []
        results = []
        for first, second in paper.pairs:
            for score in paper.scores:
                a, b = (self.by_unit(arm, score, paper.ids) for arm in (first, second))
                both = sorted(a.keys() & b.keys(), key=str)
                test = metrics.paired_t_test([a[u] for u in both], [b[u] for u in both])
                if not math.isnan(test.p):
                    mean = sum(a[u] - b[u] for u in both) / len(both)
                    results.append(
                        {"first": first, "second": second, "score": score, "difference": mean}
                        | {"t": test.t, "p": test.p, "units": test.cases, "unit": paper.unit}
                    )
        return results

    def as_json(self) -> dict[str, Any]:
        """The content of the result file."""
        scale = getattr(self.study, self.scale)
        published = methods.get(self.study.method).published
        plans = [runs[0].plan for runs in self.runs.values()]
        measured = comparisons.measure(self.study, self.evaluations)
        arms = {}
        for name in self.evaluations:
            arm = self.study.arms.get(name)
            row = arm.published if arm else name
            arms[name] = {
                "changes": dict(arm.changes) if arm else {},
                "scores": self.by_seed(name),
                "published": dict(published[row].cells) if row in published else {},
            }
        return {
            "method": self.study.method,
            "scale": self.scale,
            "data": self.data,
            "seeds": scale.seeds,
            "steps": plans[0].steps,
            "changes": dict(scale.changes),
            "patients": {
                part: max(len(getattr(plan.split, part)) for plan in plans)  # an arm may have fewer
                for part in ("train", "validate", "test")
            },
            "scores": list(self.study.scores),
            "arms": arms,
            "comparisons": comparisons.compare(self.study, measured),
            "other_scores": comparisons.other_scores(self.study, measured),
            "as_the_paper_tested": self.as_the_paper_tested(),
            "power": list(self.power),
            "controls": [asdict(control) for control in self.controls],
            "peers": [],  # studies.peers adds them
            "measurements": measured,
            "facts": self.facts,
            "minutes": None if self.seconds is None else self.seconds / 60,
            "versions": _versions(),
        }

    def save(self) -> dict[str, Any]:
        """Write ``<method>-<scale>.json`` to the results folder."""
        content: dict[str, Any] = comparisons.without_nan(self.as_json())
        self.results.mkdir(parents=True, exist_ok=True)
        path = self.results / f"{self.study.method}-{self.scale}.json"
        path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        return content


def _versions() -> dict[str, Any]:
    """Of the programs and the machine."""
    return {
        "cmrfast": cmrfast.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "cpu": _cpu(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())

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
from cmrfast.errors import FileError
from cmrfast.runs.evaluate import Evaluation, evaluate
from cmrfast.train import Run
from studies import comparisons
from studies.design import Control, Scale, Study
from studies.peer import Peer

Unit = tuple[Any, ...]


def evaluate_whole(
    run: Run, data: Path | None = None, *, part: str = "test", device: str = "cpu"
) -> Evaluation:
    """An evaluation that lacks no patient, as arms are compared on the same ones."""
    evaluation = evaluate(run, data, part=part, device=device)
    if evaluation.failed:
        reasons = "; ".join(f"{name}: {why}" for name, why in evaluation.failed.items())
        raise FileError(f"study: {run.path}: patients could not be scored: {reasons}")
    return evaluation


@dataclass
class Outcome:
    """All trainings of a study, scored on the same test patients.

    Args:
        study: what was compared.
        scale: its size.
        scale_name: tiny, small or paper.
        data: description of the training data.
        results: folder for the result files.
        runs: the runs of each arm, one per seed.
        evaluations: the evaluations of each arm, one per seed; more arms may be added.
        resplit: whether repeats split the same patients again, instead of having their own.
        power: what each planned comparison can find, from a pilot; empty without one.
        seconds: duration of the study, None if parts of it had been done before.
        facts: findings that are not scores of an arm.
        controls: whether the data can answer the study's question.
        peers: other programs and rules on the same test patients.
    """

    study: Study
    scale: Scale
    scale_name: str
    data: str
    results: Path
    runs: Mapping[str, Sequence[Run]]
    evaluations: dict[str, list[Evaluation]]
    resplit: bool = False
    power: Sequence[Mapping[str, Any]] = ()
    seconds: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    controls: list[Control] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """The name of the result file and figures, without an ending."""
        return self.study.stem(self.scale_name)

    def by_seed(self, arm: str) -> dict[str, list[float]]:
        """Each score's mean for each seed: {score: one value per seed}.

        All units count, also those whose two masks are both empty, with an overlap of 1.
        """
        means = [
            {name: metrics.summarise(values).mean for name, values in own.scores.items()}
            | dict(own.pooled)
            for own in self.evaluations[arm]
        ]
        return {
            name: [mean[name] for mean in means]
            for name in self.study.scores
            if all(name in mean for mean in means)
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
        published = methods.get(self.study.method).published
        plans = [runs[0].plan for runs in self.runs.values()]
        how = {"repeats": self.scale.repeats, "resplit": self.resplit}
        measured = comparisons.measure(self.study, self.evaluations, repeats=self.scale.repeats)
        arms = {}
        for name in self.evaluations:
            arm = self.study.arms.get(name)
            row = (arm.published if arm else name) or ""
            arms[name] = {
                "changes": dict(arm.changes) if arm else {},
                "scores": self.by_seed(name),
                "published": dict(published[row].cells) if row in published else {},
            }
        return {
            "method": self.study.method,
            "experiment": self.study.experiment,
            "scale": self.scale_name,
            "data": self.data,
            "seeds": self.scale.seeds,
            **how,
            "steps": max(plan.steps for plan in plans),  # arms may differ
            "changes": dict(self.scale.changes),
            "patients": {
                part: max(len(getattr(plan.split, part)) for plan in plans)  # an arm may have fewer
                for part in ("train", "validate", "test")
            },
            "scores": list(self.study.scores),
            "arms": arms,
            "comparisons": comparisons.compare(self.study, measured, **how),
            "other_scores": comparisons.other_scores(self.study, measured, **how),
            "as_the_paper_tested": self.as_the_paper_tested(),
            "power": list(self.power),
            "controls": [asdict(control) for control in self.controls],
            "peers": [peer.as_json(self.study) for peer in self.peers],
            "measurements": measured,
            "facts": self.facts,
            "minutes": None if self.seconds is None else self.seconds / 60,
            "versions": _versions(),
        }

    def save(self) -> dict[str, Any]:
        """Write its result file to the results folder."""
        content: dict[str, Any] = comparisons.without_nan(self.as_json())
        self.results.mkdir(parents=True, exist_ok=True)
        path = self.results / f"{self.stem}.json"
        if path.exists():
            content["peers"] += _of_same_patients(json.loads(path.read_text("utf-8")), content)
        path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        return content


def _of_same_patients(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Peers in an older result file that are not in the new one, if its patients are the same."""
    if tested(old) != tested(new):
        return []
    names = {peer["name"] for peer in new["peers"]}
    return [peer for peer in old["peers"] if peer["name"] not in names]


def tested(content: Mapping[str, Any]) -> set[str]:
    """Names of the test patients of a result file."""
    return {
        name
        for scores in content["measurements"].values()
        for by_patient in scores.values()
        for name in by_patient
    }


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

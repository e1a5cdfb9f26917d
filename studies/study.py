"""Run a study: train a paper's variants on the same patients, and score them on test patients."""

import argparse
import multiprocessing
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cmrfast.data.cache import Cache
from cmrfast.data.datasets import Split
from cmrfast.runs.evaluate import Evaluation
from cmrfast.train import Run, train
from studies import comparisons
from studies.cohorts import Cohorts
from studies.design import Scale, Study
from studies.outcome import Outcome, evaluate_whole

PILOT_SEEDS = 2
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class _Job:
    """One training of one arm; ``pilot`` has patients that estimate the power, if any do."""

    study: str
    arm: str
    seed: int
    folder: Path
    data: Path
    pilot: Path | None
    split: Split
    changes: Mapping[str, Any]
    steps: int | None
    threads: int
    device: str

    @property
    def pilot_part(self) -> str:
        """The part of the split, or all of ``pilot``, on which the power is estimated."""
        return "all" if self.pilot else "validate"


def run(*studies: Study) -> Outcome:
    """Train and score the arms of a study that are not done yet; parses the command line.

    Args:
        studies: the experiments of one method, the main one first.
    """
    options = _options(studies)
    study: Study = options.study
    scale = study.scale(options.scale)
    if options.pretrained:
        scale = replace(scale, changes={**scale.changes, "pretrained": str(options.pretrained)})
    out: Path = options.out or _HERE / "runs" / study.stem(options.scale)
    start = time.monotonic()

    def log(text: str) -> None:
        print(f"[{time.monotonic() - start:5.0f} s] {text}", flush=True)

    cohorts = Cohorts(study, scale, out, options.data)
    cohorts.prepare(log)
    jobs = list(_jobs(study, scale, out, cohorts, options))
    new = not any(job.folder.exists() for job in jobs)  # otherwise the duration means nothing
    done_before = sum(_scored(job.folder, "test") for job in jobs)
    log(f"{len(jobs)} trainings, {done_before} of them done before")
    context = multiprocessing.get_context("spawn")  # neither CUDA nor OpenMP survives a fork
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:

        def complete(jobs: Sequence[_Job], part: str) -> None:
            """Train the jobs, and score them on one part of the split, unless this is done."""
            waiting = [job for job in jobs if not _scored(job.folder, part)]
            running = {pool.submit(_train_and_score, job, part): job for job in waiting}
            for done in as_completed(running):
                done.result()
                log(f"{running[done].arm}, seed {running[done].seed}: trained, {part} scored")

        power: list[dict[str, Any]] = []
        if scale.seeds >= PILOT_SEEDS:
            pilot = [job for job in jobs if job.seed < PILOT_SEEDS]
            complete(pilot, jobs[0].pilot_part)
            power = _power(study, scale, pilot)
            for line in power:
                log(
                    f"{line['score']}, {line['first']} minus {line['second']}: "
                    f"{line['detectable']:.3g} would be found with 80 % power"
                )
            if options.scale != "tiny":  # where two steps may change nothing
                require_different(power)
        complete(jobs, "test")
    runs: dict[str, list[Run]] = {}
    for job in jobs:
        runs.setdefault(job.arm, []).append(Run.open(job.folder))
    return Outcome(
        study=study,
        scale=scale,
        scale_name=options.scale,
        data=cohorts.text,
        results=options.results,
        runs=runs,
        evaluations=_evaluations(study, jobs, "test"),
        resplit=cohorts.resplit,
        power=power,
        seconds=time.monotonic() - start if new else None,
    )


def _options(studies: Sequence[Study]) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    by_name = {study.experiment: study for study in studies}
    parser = argparse.ArgumentParser(prog=f"python -m studies.{studies[0].method}")
    if len(studies) > 1:
        parser.add_argument(
            "experiment",
            nargs="?",
            default=studies[0].experiment,
            choices=list(by_name),
            help="default: the main one",
        )
    parser.add_argument("--scale", choices=("tiny", "small", "paper"), default="small")
    parser.add_argument("--data", type=Path, help="root of the data set; default phantoms")
    parser.add_argument(
        "--out", type=Path, help="folder of the trainings; an existing one is resumed"
    )
    parser.add_argument("--pretrained", type=Path, help="file of weights, for joint_scar")
    parser.add_argument("--results", type=Path, default=_HERE / "results")
    parser.add_argument("--workers", type=int, default=1 if cuda else os.cpu_count())
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    options = parser.parse_args()
    options.study = by_name[getattr(options, "experiment", studies[0].experiment)]
    return options


def _jobs(
    study: Study, scale: Scale, out: Path, cohorts: Cohorts, options: argparse.Namespace
) -> Iterator[_Job]:
    """List the trainings seed by seed, so that an interrupted study has results of all arms."""
    for seed in range(scale.seeds):
        for name, arm in study.arms.items():
            yield _Job(
                study.method,
                name,
                seed,
                out / re.sub(r"[ ,]+", "_", name) / f"seed{seed}",
                cohorts.root(arm),
                None if options.data else cohorts.pilot(arm),
                cohorts.split(arm, seed),
                {**scale.changes, **arm.changes},
                scale.steps,
                max(1, (os.cpu_count() or 1) // options.workers),
                options.device,
            )


def _scored(folder: Path, part: str) -> bool:
    return (folder / f"evaluation-{part}.json").exists()


def _train_and_score(job: _Job, part: str) -> None:
    torch.set_num_threads(job.threads)
    trained = train(
        job.study,
        job.data,
        job.folder,
        changes=job.changes,
        split=job.split,
        steps=job.steps,
        seed=job.seed,
        device=job.device,
        resume=True,
        cache=Cache(job.folder.parents[1] / "cache"),
    )
    data = job.pilot if part == "all" else None
    evaluate_whole(trained, data, part=part, device=job.device).save(job.folder)


def require_different(power: Sequence[Mapping[str, Any]]) -> None:
    """Stop if two arms that are to be compared have the same scores.

    Args:
        power: of the pilot, as ``comparisons.detectable`` returns it.
    """
    for line in power:
        if line["detectable"] == 0:
            raise SystemExit(
                f"{line['first']} and {line['second']} have the same {line['score']} of every "
                "patient and seed; their trainings do not differ"
            )


def _evaluations(study: Study, jobs: Sequence[_Job], part: str) -> dict[str, list[Evaluation]]:
    """The evaluations of each arm, one per seed; baselines first."""
    trained: dict[str, list[Evaluation]] = {}
    for job in jobs:
        trained.setdefault(job.arm, []).append(Evaluation.load(job.folder, part))
    first = next(iter(trained.values()))
    baselines = {name: [derive(own) for own in first] for name, derive in study.baselines.items()}
    return baselines | trained


def _power(study: Study, scale: Scale, pilot: Sequence[_Job]) -> list[dict[str, Any]]:
    """What the study can find, from the pilot's patients, if any are labelled."""
    evaluations = _evaluations(study, pilot, pilot[0].pilot_part)
    if not any(evaluation.rows for own in evaluations.values() for evaluation in own):
        return []
    measured = comparisons.measure(study, evaluations)
    tested = len(pilot[0].split.test) * (scale.seeds if scale.repeats else 1)
    if tested < 2:
        return []
    return comparisons.detectable(
        study, measured, patients=tested, seeds=scale.seeds, repeats=scale.repeats
    )

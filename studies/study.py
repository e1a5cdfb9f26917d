"""Run a study: train a paper's variants on the same patients, and score them on test patients."""

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cmrfast import methods
from cmrfast.data.cache import Cache
from cmrfast.data.datasets import Split
from cmrfast.data.phantom import write_phantoms
from cmrfast.runs.evaluate import Evaluation, evaluate
from cmrfast.train import Run, train
from cmrfast.train.plan import choose_split
from studies import comparisons
from studies.design import Scale, Study
from studies.outcome import Outcome

PILOT_SEEDS = 2
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class _Job:
    """One training of one arm."""

    study: str
    arm: str
    seed: int
    folder: Path
    data: Path
    split: Split
    changes: Mapping[str, Any]
    steps: int | None
    threads: int
    device: str


def run(study: Study) -> Outcome:
    """Train and score the arms of a study that are not done yet; parses the command line."""
    options = _options(study)
    scale: Scale = getattr(study, options.scale)
    method = methods.get(study.method)
    out: Path = options.out or _HERE / "runs" / f"{study.method}-{options.scale}"
    data: Path = options.data or out / "patients"
    start = time.monotonic()

    def log(text: str) -> None:
        print(f"[{time.monotonic() - start:5.0f} s] {text}", flush=True)

    if not options.data and not (out / "patients.done").exists():
        log(f"writing {scale.cases} phantoms")
        layout = method.datasets[0]
        write_phantoms(layout, data, cases=scale.cases, shrink=scale.shrink)
        (out / "patients.done").touch()
    recipe = method.configure(scale.changes)[1]
    layout, split = choose_split(method, data, recipe, seed=0)
    jobs = list(_jobs(study, scale, out, data, split, options))
    new = not any(job.folder.exists() for job in jobs)  # otherwise the duration means nothing
    done_before = sum(_scored(job.folder, "test") for job in jobs)
    log(f"{len(jobs)} trainings, {done_before} of them done before")
    context = multiprocessing.get_context("spawn")  # neither CUDA nor OpenMP survives a fork
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:

        def complete(part: str, jobs: Sequence[_Job]) -> None:
            """Train the jobs, and score them on one part of the split, unless this is done."""
            waiting = [job for job in jobs if not _scored(job.folder, part)]
            running = {pool.submit(_train_and_score, job, part): job for job in waiting}
            for done in as_completed(running):
                done.result()
                log(f"{running[done].arm}, seed {running[done].seed}: trained, {part} scored")

        power: list[dict[str, Any]] = []
        if scale.seeds >= PILOT_SEEDS and min(len(split.validate), len(split.test)) >= 2:
            pilot = [job for job in jobs if job.seed < PILOT_SEEDS]
            complete("validate", pilot)
            power = _power(study, pilot, patients=len(split.test), seeds=scale.seeds)
            for line in power:
                log(
                    f"{line['score']}, {line['first']} minus {line['second']}: "
                    f"{line['detectable']:.3g} would be found with 80 % power"
                )
        complete("test", jobs)
    runs: dict[str, list[Run]] = {}
    for job in jobs:
        runs.setdefault(job.arm, []).append(Run.open(job.folder))
    return Outcome(
        study=study,
        scale=options.scale,
        data=f"{layout}, " + (data.name if options.data else f"{scale.cases} phantoms"),
        results=options.results,
        runs=runs,
        evaluations=_evaluations(study, jobs, "test"),
        power=power,
        seconds=time.monotonic() - start if new else None,
    )


def _options(study: Study) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog=f"python -m studies.{study.method}")
    parser.add_argument("--scale", choices=("small", "paper"), default="small")
    parser.add_argument("--data", type=Path, help="root of the data set; default phantoms")
    parser.add_argument(
        "--out", type=Path, help="folder of the trainings; an existing one is resumed"
    )
    parser.add_argument("--results", type=Path, default=_HERE / "results")
    parser.add_argument("--workers", type=int, default=1 if cuda else os.cpu_count())
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    return parser.parse_args()


def _jobs(
    study: Study, scale: Scale, out: Path, data: Path, split: Split, options: argparse.Namespace
) -> Iterator[_Job]:
    """List the trainings seed by seed, so that an interrupted study has results of all arms."""
    for seed in range(scale.seeds):
        for name, arm in study.arms.items():
            patients = split.train[: max(1, round(arm.patients * len(split.train)))]
            yield _Job(
                study.method,
                name,
                seed,
                out / name.replace(" ", "_") / f"seed{seed}",
                data,
                Split(patients, split.validate, split.test),
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
    evaluate(trained, part=part, device=job.device).save(job.folder)


def _evaluations(study: Study, jobs: Sequence[_Job], part: str) -> dict[str, list[Evaluation]]:
    """The evaluations of each arm, one per seed; baselines first."""
    trained: dict[str, list[Evaluation]] = {}
    for job in jobs:
        trained.setdefault(job.arm, []).append(Evaluation.load(job.folder, part))
    first = next(iter(trained.values()))[0]
    return {name: [derive(first)] for name, derive in study.baselines.items()} | trained


def _power(
    study: Study, pilot: Sequence[_Job], *, patients: int, seeds: int
) -> list[dict[str, Any]]:
    """What the study can find, from the pilot's validation patients, if any are labelled."""
    evaluations = _evaluations(study, pilot, "validate")
    if not any(evaluation.rows for own in evaluations.values() for evaluation in own):
        return []
    measured = comparisons.measure(study, evaluations)
    return comparisons.detectable(study, measured, patients=patients, seeds=seeds)

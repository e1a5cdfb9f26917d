"""Prediction of a cohort: files in, files out; a bad case does not stop the others."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmrfast.atomic import atomic_write
from cmrfast.data.datasets import open_dataset
from cmrfast.data.datasets.case import Case
from cmrfast.data.nifti import write_nifti
from cmrfast.errors import FileError
from cmrfast.files import read_json, take
from cmrfast.methods import AnyTask, Prediction
from cmrfast.train.ranks import process_group
from cmrfast.train.run import Run

_DONE = "prediction.json"


@dataclass
class Outcome:
    """The result of each case, by name; for the failed ones, the reason in one line."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, other: "Outcome") -> None:
        """Take in the cases of another process."""
        self.done += other.done
        self.skipped += other.skipped
        self.failed |= other.failed


def predict(
    run: Run,
    inputs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> Outcome:
    """Write ``out/<case>/*.nii.gz`` and ``prediction.json`` for every case.

    A case that the same checkpoint has predicted before is skipped, so an interrupted cohort
    resumes. If memory runs out, the case is repeated with half the batch. Under torchrun the
    processes share the cases.

    Args:
        run: a trained one.
        inputs: image files, of methods that take one image, or folders in the layout of the run.
        out: made where missing.
        device: auto, cpu or cuda.
        progress: called with a line per case of this process.

    Returns:
        The outcome of all cases, on every process.
    """
    with process_group(device) as ranks:
        own = Outcome()
        cases = list(find_cases(run, inputs, own))[ranks.rank :: ranks.count]
        _predict_cases(run, cases, Path(out), own, ranks.device, progress or (lambda line: None))
        outcome = Outcome()
        for part in ranks.gather(own):
            outcome.add(part)
    return outcome


def _predict_cases(
    run: Run,
    cases: Sequence[Case],
    out: Path,
    outcome: Outcome,
    device: torch.device,
    progress: Callable[[str], None],
) -> None:
    checkpoint = run.checkpoint()
    made_by = {
        "run": str(run.path.resolve()),
        "method": run.plan.method,
        "step": checkpoint.step,
        "tensors": checkpoint.digest,
    }
    model, task = run.model(device=device), run.task(device=device)
    for case in cases:
        try:
            folder = case_folder(out, case.name)
            if _made_by(folder) == made_by:
                outcome.skipped.append(case.name)
                progress(f"{case.name}: there already")
                continue
            prediction = _with_less_memory(task, model, case)
            _write(folder, prediction, made_by)
        except Exception as error:  # whatever is wrong with one case, the others continue
            outcome.failed[case.name] = " ".join(str(error).split()) or type(error).__name__
            progress(f"{case.name}: failed")
            continue
        outcome.done.append(case.name)
        progress(f"{case.name}: {', '.join(prediction.images)}")


def case_folder(out: Path, case: str) -> Path:
    """The folder of a case, directly in ``out``; a name that would lead elsewhere is refused."""
    if case in ("", ".", "..") or any(mark in case for mark in "/\\\0"):
        raise FileError(f"predict: {case!r} cannot be the name of a case's folder")
    return out / case


def find_cases(
    run: Run, inputs: Sequence[str | os.PathLike[str]], outcome: Outcome
) -> Iterator[Case]:
    """The cases of files and folders; inputs that hold none go to the failed."""
    method = run.method
    seen: set[str] = set()
    for given in inputs:
        path = Path(given)
        try:
            if path.is_dir():
                cases = list(open_dataset(run.plan.layout, path))
            elif not path.is_file():
                raise FileError(f"predict: {path} is neither a file nor a folder")
            elif method.single_image is None:
                raise FileError(
                    f"predict: {method.name} takes several images; give a folder in the layout "
                    f"{run.plan.layout}, not the file {path}"
                )
            else:
                name = path.name.removesuffix(".gz").removesuffix(".nii")
                cases = [Case(name, {method.single_image: path}, {}, {})]
        except FileError as error:
            outcome.failed[str(given)] = str(error)
            continue
        for case in cases:
            if case.name in seen:
                outcome.failed[str(given)] = f"predict: a second case is named {case.name}"
                continue
            seen.add(case.name)
            yield case


def _with_less_memory(task: AnyTask, model: nn.Module, case: Case) -> Prediction:
    while True:
        try:
            with torch.inference_mode():
                return task.predict(model, case)
        except torch.OutOfMemoryError:
            if task.predict_batch == 1:
                raise
            torch.cuda.empty_cache()
            task.predict_batch //= 2


def _write(folder: Path, prediction: Prediction, made_by: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # First, so that an interrupted case does not look finished.
    (folder / _DONE).unlink(missing_ok=True)
    for name, output in prediction.images.items():
        write_nifti(folder / f"{name}.nii.gz", output.volume, like=output.like)
    content = {"made_by": made_by, "images": list(prediction.images), **prediction.facts}
    with atomic_write(folder / _DONE) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _made_by(folder: Path) -> Any:
    try:
        stored = read_json(folder / _DONE)
        whole = all((folder / f"{name}.nii.gz").exists() for name in take(stored, "images", list))
        return take(stored, "made_by", dict) if whole else None
    except (OSError, ValueError):
        return None

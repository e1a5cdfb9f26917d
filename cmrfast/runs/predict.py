"""Prediction of a cohort: files in, files out; a bad case does not stop the others."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmrfast.data.datasets import Case, read_channels
from cmrfast.data.dicom import holds_dicom
from cmrfast.errors import FileError
from cmrfast.files import path_digest
from cmrfast.methods import AnyMethod, AnyTask, Prediction, case_of_files, match_cases
from cmrfast.models._check import require_option
from cmrfast.runs.outputs import LIKE, Outputs
from cmrfast.runs.text import in_one_line
from cmrfast.train.allocator import keep_freed_memory
from cmrfast.train.ranks import process_group
from cmrfast.train.run import Run

File = str | os.PathLike[str]
#: A file, a folder, or the files of one case by the method's names.
Input = File | Mapping[str, File]


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
    inputs: Sequence[Input],
    out: str | os.PathLike[str],
    *,
    like: str = "folders",
    frame: int | None = None,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> Outcome:
    """Write ``out/<case>/*.nii.gz`` and ``prediction.json`` for every case.

    The volumes, counts and transforms of all cases in ``out`` go into ``predictions.csv``. A case
    that the same checkpoint has predicted before from the same bytes is skipped, so an interrupted
    cohort resumes; one whose files have changed is predicted again. Another case of a name that
    ``out`` holds already is refused. If memory runs out, the case is repeated with half the batch.
    Under torchrun the processes share the cases.

    Masks are written as uint8, other images as float32. A 2-D image is one slice. An image of
    several time points or channels is refused unless ``frame`` chooses one.

    Args:
        run: a trained one.
        inputs: image files or folders of DICOM slices, of methods that take one image; data sets in
            any layout that has the method's sequences; or, for one case, the method's name of each
            sequence or mask → file.
        out: made where missing.
        like: ``folders``, a folder for each case; ``nnunet``, ``out/<case>.nii.gz`` with the values
            in the input's ``dataset.json``; ``bids``, derivatives; ``dicom-seg``, DICOM
            segmentations, if the input is folders of DICOM slices.
        frame: the time point, from 1, of images with several.
        device: auto, cpu, or a GPU: cuda, cuda:1.
        progress: called with a line per case of this process.

    Returns:
        The outcome of all cases, on every process.
    """
    require_option("predict", "like", like, list(LIKE))
    with process_group(device) as ranks, keep_freed_memory():
        own = Outcome()
        cases = [replace(case, frame=frame) for case in find_cases(run, inputs, own)]
        outputs = LIKE[like](Path(out))
        own_cases = cases[ranks.rank :: ranks.count]
        _predict_cases(run, own_cases, outputs, own, ranks.device, progress or (lambda line: None))
        outcome = Outcome()
        for part in ranks.gather(own):
            outcome.add(part)
        if ranks.first and (outcome.done or outcome.skipped):
            outputs.write_table()
    return outcome


def _predict_cases(
    run: Run,
    cases: Sequence[Case],
    outputs: Outputs,
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
        "like": outputs.name,
    }
    model, task = run.model(device=device), run.task(device=device)
    for case in cases:
        try:
            own = {**made_by, "frame": case.frame, **_inputs_of(run, case)}
            if _is_made(outputs, case, own):
                outcome.skipped.append(case.name)
                progress(f"{case.name}: there already")
                continue
            prediction = _with_less_memory(task, model, case)
            outputs.write(case, prediction, own)
        except Exception as error:  # whatever is wrong with one case, the others continue
            outcome.failed[case.name] = in_one_line(error)
            progress(f"{case.name}: failed")
            continue
        outcome.done.append(case.name)
        progress(f"{case.name}: {', '.join(prediction.images)}")


def _inputs_of(run: Run, case: Case) -> dict[str, dict[str, str | None]]:
    """Where the files are that a prediction reads, and their hashes."""
    taken = run.method.needs.predict
    files = {f"image {name}": case.images[name] for name in taken.images if name in case.images}
    for name in (*taken.labels, *taken.optional):
        files |= {f"label {key}": path for key, path in case.label_files(name).items()}
    return {
        "files": {name: str(path.resolve()) for name, path in files.items()},
        "inputs": {name: path_digest(path) for name, path in files.items()},
    }


def _is_made(outputs: Outputs, case: Case, own: Mapping[str, Any]) -> bool:
    """Whether the files of a case are there and were made in this way from the same inputs.

    Raises:
        FileError: they were made from an image that has both another path and other bytes.
    """
    stored = outputs.made_by(case)
    if stored is None:
        return False
    if {**stored, "files": None} == {**own, "files": None}:  # where they lie makes no difference
        return True
    for name, file in own["files"].items():
        before, digest = (_entry(stored, part, name) for part in ("files", "inputs"))
        other = before not in (None, file) and digest not in (None, own["inputs"][name])
        if name.startswith("image ") and other:
            raise FileError(
                f"predict: a second case is named {case.name}: {outputs.folder} holds what was "
                f"predicted from {before}, not from {file}; choose another folder"
            )
    return False


def _entry(stored: Mapping[str, Any], part: str, name: str) -> Any:
    """An entry of a part of what made a case; None in files of earlier versions."""
    entries = stored.get(part)
    return entries.get(name) if isinstance(entries, dict) else None


def find_cases(run: Run, inputs: Sequence[Input], outcome: Outcome) -> Iterator[Case]:
    """The cases of files and folders; inputs that hold none go to the failed."""
    seen: set[str] = set()
    for given in inputs:
        try:
            cases = _cases_of(run, given)
        except FileError as error:
            outcome.failed[str(given)] = str(error)
            continue
        for case in cases:
            if case.name in seen:
                outcome.failed[str(given)] = f"predict: a second case is named {case.name}"
                continue
            seen.add(case.name)
            yield case


def _cases_of(run: Run, given: Input) -> Sequence[Case]:
    method, needs = run.method, run.method.needs
    if isinstance(given, Mapping):
        return [case_of_files(method, given)]
    path = Path(given)
    is_folder = os.path.isdir(path)  # Path.is_dir raises in a folder that is locked
    if is_folder or path.suffix == ".csv":
        try:
            return run.open_cases(path)
        except FileError:
            if is_folder and holds_dicom(path):
                return [_case_of_file(method, path)]
            if not is_folder or not any(path.glob("*_0000.nii*")):
                raise
        described = Path(run.data) if run.plan.layout == "nnunet" else None
        return match_cases(method, read_channels(path, needs.predict.images, described))
    if not os.path.isfile(path):
        raise FileError(f"predict: {path} is neither a file nor a folder")
    return [_case_of_file(method, path)]


def _case_of_file(method: AnyMethod, path: Path) -> Case:
    """The case of one image, a file or a folder of DICOM slices."""
    needs = method.needs
    if len(needs.predict.images) > 1 or needs.predict.labels:
        names = (*needs.predict.images, *needs.predict.labels)
        options = " ".join(f"--{name.lower().replace('_', '-')} FILE" for name in names)
        raise FileError(
            f"predict: {method.name} takes several files; give {options}, or a folder instead of "
            f"{path}"
        )
    return case_of_files(method, {needs.predict.images[0]: path})


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

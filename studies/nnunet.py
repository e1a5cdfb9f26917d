"""nnU-Net on the patients of the segmentation studies (extra ``peers``)."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cmrfast.data import read_nifti
from cmrfast.data.datasets import Case, write_nnunet
from studies.peer import Peer, score

_HERE = Path(__file__).parent
#: The command of nnU-Net that plans and preprocesses, as module and function.
_PREPARE = (
    "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints",
    "plan_and_preprocess_entry",
)


@dataclass(frozen=True)
class _Problem:
    """A study as nnU-Net gets it.

    Args:
        images: its channels.
        label: the mask that it learns.
        structures: their labels are 1, 2, ...
        training: cases to train on, from the training patients.
        test: the case to predict, from a test patient.
        note: what it is trained on.
    """

    images: tuple[str, ...]
    label: str
    structures: tuple[str, ...]
    training: Callable[[Sequence[Case]], list[Case]] = list
    test: Callable[[Case], Case] = lambda case: case
    note: str = ""


def _one_image(case: Case, sequence: str) -> Case:
    """An image and its mask as a case of the sequence MR."""
    return replace(
        case,
        name=f"{case.name}_{sequence}",
        images={"MR": case.images[sequence]},
        labels={"MR": case.labels[sequence]} if sequence in case.labels else {},
        labelling={"MR": replace(case.labelling[sequence], on="MR")},
    )


def _annotated_images(cases: Sequence[Case]) -> list[Case]:
    """What ``u`` learns from: each image with its own mask as a case."""
    return [
        _one_image(case, sequence)
        for case in cases
        for sequence in case.images
        if sequence in case.labels
    ]


PROBLEMS = {
    "joint_scar": _Problem(("LGE",), "LGE", ("myocardium", "scar")),
    "new_lesions": _Problem(
        ("earlier", "later"), "consensus", ("new_lesion",), note="two channels"
    ),
    "adversarial_transfer": _Problem(
        ("MR",),
        "MR",
        ("lv", "myocardium", "rv"),
        training=_annotated_images,
        test=lambda case: _one_image(case, "LGE"),
        note="the images and masks that `u` learns from, all sequences as one channel",
    ),
}


def run_nnunet(
    name: str,
    train: Sequence[Case],
    test: Sequence[Case],
    *,
    minutes: float,
    out: Path,
    **changes: Any,
) -> Peer:
    """Train nnU-Net's 2-D configuration, and score it as the study scores its arms.

    Args:
        name: a key of ``PROBLEMS``.
        train: training patients.
        test: test patients.
        minutes: duration of its training; preparation and prediction add to that.
        out: folder for nnU-Net's own folders and ``log.txt``.
        changes: changed fields of the study's method, which may change how it scores.
    """
    start, problem = time.monotonic(), PROBLEMS[name]
    root = write_nnunet(
        problem.training(train),
        out / "raw",
        images=problem.images,
        label=problem.label,
        structures=problem.structures,
        number=1,
        name=name,
        test=[problem.test(case) for case in test],
    )
    predicted, trained = _train_and_predict(out, root.name, minutes)
    labels = {}
    for case in test:
        given = problem.test(case)
        found = read_nifti(predicted / f"{given.name}.nii.gz")
        if not found.shares_grid(given.image(given.labelling[problem.label].on)):
            raise RuntimeError(f"nnU-Net's labels of {given.name} lie on another grid")
        labels[case.name] = found.with_data(found.data.byte())
    notes = (problem.note, "2-D configuration", trained, "one seed, CPU")
    return Peer(
        "nnU-Net",
        version("nnunetv2"),
        time.monotonic() - start,
        score(name, test, labels, **changes),
        "; ".join(note for note in notes if note),
    )


def _train_and_predict(out: Path, dataset: str, minutes: float) -> tuple[Path, str]:
    """Returns the folder of the labels, and what was trained."""
    environment = {
        **os.environ,
        **{f"nnUNet_{kind}": str(out / kind) for kind in ("raw", "preprocessed", "results")},
        "nnUNet_def_n_proc": str(os.cpu_count()),
        "nnUNet_compile": "f",
    }
    _call(
        out,
        [
            *("-c", f"from {_PREPARE[0]} import {_PREPARE[1]}; {_PREPARE[1]}()"),
            *("-d", "1", "-c", "2d", "-np", "1", "-npfp", "1", "--verify_dataset_integrity"),
        ],
        environment,
    )
    predicted = out / "predicted"
    # Without processes for augmentation, so that the seed determines it.
    _call(
        out,
        ["-P", str(_HERE / "timed_nnunet.py"), dataset, str(60 * minutes), str(predicted)],
        {**environment, "nnUNet_n_proc_DA": "0"},
    )
    trained = json.loads((predicted / "steps.json").read_text("utf-8"))
    return predicted, f"batch {trained['batch']}, {trained['steps']} steps in {minutes:g} minutes"


def _call(out: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run Python in a process of its own, as nnU-Net reads its settings when it is imported."""
    log = out / "log.txt"
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        lines = log.read_text("utf-8", "replace").splitlines()
        raise RuntimeError(f"nnU-Net failed: {lines[-1] if lines else ''} ({log})")

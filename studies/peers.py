"""Other programs on a study's patients (extra ``peers``).

python -m studies.peers joint_scar [--scale small|paper] [--data ROOT] [--minutes 20]

scores them on the study's test patients, in the study's own way, and adds their rows to its result
file. The study must have been run before: its folder has the patients. For scar, LGE and new
lesions, nnU-Net trains its 2-D configuration, its smallest, on the study's training patients, from
one seed on the CPU; for registration, SimpleITK aligns each pair of slices.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmrfast import methods
from cmrfast.data import Volume, open_dataset, read_nifti
from cmrfast.data.datasets import Case, Labelling, write_nnunet
from cmrfast.methods.adversarial_transfer.task import AdversarialTransferTask
from cmrfast.methods.joint_scar.task import JointScarTask
from cmrfast.methods.new_lesions.images import NewLesionMap
from cmrfast.methods.new_lesions.task import NewLesionsTask
from cmrfast.methods.task import Task
from cmrfast.runs.evaluate import Evaluation
from cmrfast.train.plan import choose_split
from studies import comparisons, page
from studies.design import Scale, Study

_HERE = Path(__file__).parent
#: The command of nnU-Net that plans and preprocesses, as module and function.
_PREPARE = (
    "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints",
    "plan_and_preprocess_entry",
)


@dataclass(frozen=True)
class Peer:
    """What another program reached on the test patients.

    Args:
        name: of the program and what it was given.
        version: of the program.
        seconds: duration of all it did, reading and writing included.
        evaluation: its scores, in the rows of the study's method.
        note: how it was run.
    """

    name: str
    version: str
    seconds: float
    evaluation: Evaluation
    note: str

    def as_json(self, study: Study) -> dict[str, Any]:
        """The entry of the result file: means as an arm's, and each patient's measurements."""
        summary = self.evaluation.summary()
        measured = comparisons.measure(study, {self.name: [self.evaluation]})[self.name]
        return {
            "name": self.name,
            "version": self.version,
            "seconds": self.seconds,
            "scores": {s: summary[s].mean for s in study.scores if s in summary},
            "measurements": measured,
            "patients": len({row.ids["case"] for row in self.evaluation.rows}),
            "note": self.note,
        }


class _GivenScar(JointScarTask):
    """Scores masks that another program drew, in place of a model's."""

    def _segment(self, model: Any, image: Volume) -> dict[str, Volume]:
        names = {"myocardium": (1, 2), "scar": (2,)}
        labelling = Labelling("LGE", {}, names)
        return {name: image.with_data(labelling.mask(model, name).data.byte()) for name in names}


class _GivenLesions(NewLesionsTask):
    """Scores masks that another program drew, in place of a model's."""

    def _segment(self, model: Any, case: Case) -> NewLesionMap:
        return NewLesionMap(mask=model, probability=model)


class _GivenHeart(AdversarialTransferTask):
    """Scores labels that another program drew, in place of a model's."""

    def _segment(self, model: Any, image: Volume) -> Volume:
        labels: Volume = model
        return labels

    def annotated_images(self, cases: Sequence[Case]) -> list[Case]:
        """What ``u`` learns from: each image with its own mask as a case, few of them LGE."""
        lenders = self._lge_lenders(cases)
        return [
            _one_image(case, sequence)
            for case in cases
            for sequence in case.images
            if sequence in case.labels and (sequence != "LGE" or case.name in lenders)
        ]


@dataclass(frozen=True)
class _Problem:
    """A study as nnU-Net gets it.

    Args:
        task: scores label volumes.
        images: its channels.
        label: the mask that it learns.
        structures: their labels are 1, 2, ...
        training: cases to train on, from the training patients.
        test: the case to predict, from a test patient.
        note: what it is trained on.
    """

    task: Callable[..., Task[Any, Any, Any]]
    images: tuple[str, ...]
    label: str
    structures: tuple[str, ...]
    training: Callable[[Any, Sequence[Case]], list[Case]] = lambda task, cases: list(cases)
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


PROBLEMS = {
    "joint_scar": _Problem(_GivenScar, ("LGE",), "LGE", ("myocardium", "scar")),
    "new_lesions": _Problem(
        _GivenLesions, ("earlier", "later"), "consensus", ("new_lesion",), note="two channels"
    ),
    "adversarial_transfer": _Problem(
        _GivenHeart,
        ("MR",),
        "MR",
        ("lv", "myocardium", "rv"),
        training=_GivenHeart.annotated_images,
        test=lambda case: _one_image(case, "LGE"),
        note="the images and masks that `u` learns from, all sequences as one channel",
    ),
}


def nnunet(
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
    start = time.monotonic()
    problem, method = PROBLEMS[name], methods.get(name)
    task = problem.task(*method.configure(changes))
    root = write_nnunet(
        problem.training(task, train),
        out / "raw",
        images=problem.images,
        label=problem.label,
        structures=problem.structures,
        number=1,
        name=name,
        test=[problem.test(case) for case in test],
    )
    predicted, trained = _train_and_predict(out, root.name, minutes)
    rows = []
    for case in test:
        labels = read_nifti(predicted / f"{problem.test(case).name}.nii.gz")
        rows += task.evaluate(labels.with_data(labels.data.byte()), case)
    notes = (problem.note, "2-D configuration", trained, "one seed, CPU")
    return Peer(
        "nnU-Net",
        version("nnunetv2"),
        time.monotonic() - start,
        Evaluation(name, "test", rows, {}),
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
        [str(_HERE / "timed_nnunet.py"), dataset, str(60 * minutes), str(predicted)],
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


class _Registration(nn.Module):
    """SimpleITK in place of a registration network, on the slices that a network would get."""

    def __init__(self, *, affine: bool) -> None:
        super().__init__()
        self.affine = affine

    def forward(self, cine: Tensor, lge: Tensor) -> dict[str, Tensor]:
        """``theta`` (B, 2, 3) of slices (B, 1, H, W)."""
        pairs = zip(cine[:, 0], lge[:, 0], strict=True)
        return {"theta": torch.stack([_register(*pair, affine=self.affine) for pair in pairs])}


def _register(fixed: Tensor, moving: Tensor, *, affine: bool) -> Tensor:
    """Centres of mass aligned and, with ``affine``, Mattes' mutual information maximised."""
    import SimpleITK as sitk  # noqa: N813

    images = [sitk.GetImageFromArray(image.float().cpu().numpy()) for image in (fixed, moving)]
    moments = sitk.CenteredTransformInitializerFilter.MOMENTS
    transform = sitk.CenteredTransformInitializer(*images, sitk.AffineTransform(2), moments)
    if affine:
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(32)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([4, 2, 1])
        method.SetSmoothingSigmasPerLevel([2, 1, 0])
        method.SetInitialTransform(transform, inPlace=False)
        transform = method.Execute(*images)
    origin, *ends = (
        torch.tensor(transform.TransformPoint(point), dtype=torch.float64)
        for point in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    )
    linear = torch.stack([end - origin for end in ends], 1)
    # From pixels to coordinates from -1 to 1, in SimpleITK's order: columns before rows.
    half = torch.tensor(fixed.shape[::-1], dtype=torch.float64) / 2
    middle = half - 0.5
    offset = linear @ middle + origin - middle
    return torch.cat((linear * half / half[:, None], (offset / half)[:, None]), 1).float()


def registrations(test: Sequence[Case], **changes: Any) -> list[Peer]:
    """SimpleITK's registrations, scored as ``joint_registration``'s networks."""
    method = methods.get("joint_registration")
    task = method.task(*method.configure(changes))
    found = []
    for name, affine in (("centres of mass", False), ("affine, mutual information", True)):
        start = time.monotonic()
        model: Any = _Registration(affine=affine).eval()
        rows = [row for case in test for row in task.evaluate(model, case)]
        found.append(
            Peer(
                f"SimpleITK, {name}",
                version("SimpleITK"),
                time.monotonic() - start,
                Evaluation("joint_registration", "test", rows, {}),
                "each pair of slices on its own, as the networks get it; no training",
            )
        )
    return found


def add(results: Path, study: Study, scale: str, peer: Peer, patients: Sequence[str]) -> str:
    """Put a peer into the study's result file, in place of its older row; returns its table.

    Args:
        results: folder of the result files.
        study: whose file it is.
        scale: small or paper.
        peer: to add.
        patients: names of the test patients, which must be those of the file.
    """
    path = results / f"{study.method}-{scale}.json"
    content = json.loads(path.read_text("utf-8"))
    measured = {
        name
        for scores in content["measurements"].values()
        for by_patient in scores.values()
        for name in by_patient
    }
    if measured != set(patients):
        raise SystemExit(f"{path} is of other test patients; run the study again")
    others = [row for row in content.get("peers", []) if row["name"] != peer.name]
    content["peers"] = [*others, comparisons.without_nan(peer.as_json(study))]
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return page.peers(content)


def main() -> None:
    """Run nnU-Net on a study's patients; parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m studies.peers")
    parser.add_argument("study", choices=(*PROBLEMS, "joint_registration"))
    parser.add_argument("--scale", choices=("small", "paper"), default="small")
    parser.add_argument("--data", type=Path, help="root of the data set; default the phantoms")
    parser.add_argument("--out", type=Path, help="folder of the study's trainings")
    parser.add_argument("--results", type=Path, default=_HERE / "results")
    parser.add_argument("--minutes", type=float, default=20, help="of nnU-Net's training")
    options = parser.parse_args()
    study: Study = importlib.import_module(f"studies.{options.study}").STUDY
    scale: Scale = getattr(study, options.scale)
    out = options.out or _HERE / "runs" / f"{study.method}-{options.scale}"
    data = options.data or out / "patients"
    if not data.exists() or not (options.results / f"{study.method}-{options.scale}.json").exists():
        raise SystemExit(f"run python -m studies.{study.method} first: the peers use its patients")
    method = methods.get(study.method)
    layout, split = choose_split(method, data, method.configure(scale.changes)[1], seed=0)
    patients = open_dataset(layout, data)
    train, test = patients.subset(split.train), patients.subset(split.test)
    if study.method == "joint_registration":
        found = registrations(test, **scale.changes)
    else:
        with tempfile.TemporaryDirectory() as folder:
            minutes, out = options.minutes, Path(folder)
            found = [nnunet(study.method, train, test, minutes=minutes, out=out, **scale.changes)]
    for peer in found:
        text = add(options.results, study, options.scale, peer, split.test)
    print(text)


if __name__ == "__main__":
    main()

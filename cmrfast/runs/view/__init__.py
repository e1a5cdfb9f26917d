"""The viewer: a page that shows an image in 3-D with masks and maps over it."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cmrfast.data.datasets import Case
from cmrfast.data.datasets.match import Values
from cmrfast.data.dicom import read_dicom_folder
from cmrfast.data.nifti import read_nifti
from cmrfast.data.phantom.marker import is_synthetic
from cmrfast.data.volume import Volume
from cmrfast.errors import FileError, did_you_mean
from cmrfast.runs.view.page import MOST_MB, About, write_page
from cmrfast.runs.view.scene import Layer, Scene, named_labels, scene_of_picture
from cmrfast.train.ranks import process_group
from cmrfast.train.run import Run

File = str | os.PathLike[str]
#: What may not be in the name of a file.
_SEPARATORS = re.compile(r"[/\\\0]")
#: A mask of whole numbers has at most as many labels.
_MOST_LABELS = 64
_SYNTHETIC = "The patient is synthetic."


@dataclass(frozen=True)
class CaseOptions:
    """How ``view_case`` finds and predicts a patient.

    Args:
        data: root of a data set; default where it was in training.
        labels: structure → its values in the masks; default those of the training.
        device: auto, cpu, or a GPU: cuda, cuda:1.
    """

    data: str | None = None
    labels: Values | None = None
    device: str = "cpu"


def view_files(
    image: File,
    masks: Sequence[File] | Mapping[str, File] = (),
    out: File | None = None,
    *,
    frame: int | None = None,
    most_mb: float = MOST_MB,
) -> Path:
    """Write a page that shows an image with masks over it; it needs no other file and no network.

    Args:
        image: NIfTI, or a folder of DICOM slices.
        masks: files of masks of whole numbers, or of maps of values from 0 to 1, such as
            probabilities; or their names → files. On other grids than the image's they are shown
            as they lie in the scanner.
        out: the HTML file; default the image's name in the current folder.
        frame: the time point, from 1, to show of images with several; default all.
        most_mb: limit for the volumes in the page.

    Returns:
        The page.

    Raises:
        FileError: a file cannot be read or written, is neither a mask nor a map, or is too large.
    """
    named = masks if isinstance(masks, Mapping) else _named(masks)
    shown = _read(image, frame)
    notes, layers = [], []
    for name, path in named.items():
        volume = _read(path, frame if shown.channels == 1 else None)
        layers.append(_layer(name, path, volume))
        if not volume.shares_grid(shown):
            notes.append(f"{name} lies on another grid than the image: it is resampled to it.")
        if volume.channels not in (1, shown.channels):
            raise FileError(
                f"view: {path} must have one time point, or {shown.channels} as {image}; it has "
                f"{volume.channels}"
            )
    scene = Scene(_stem(image), shown, tuple(layers), tuple(notes))
    page = Path(f"{scene.title}.html") if out is None else out
    about = About(_geometry(shown), _notes(image))
    return write_page(scene, page, about, most_mb=most_mb)


def view_case(
    run: Run,
    case: str,
    out: File | None = None,
    options: CaseOptions | None = None,
    *,
    most_mb: float = MOST_MB,
) -> Path:
    """Predict one patient and write a page that shows the result over the image.

    Besides the prediction there are, where a case or a network has them, the reference labels, how
    both differ, and probabilities.

    Args:
        run: a trained one.
        case: name of a patient in the data set.
        out: the HTML file; default ``view-<case>.html`` in the run's folder.
        options: where the patient is, and what predicts.
        most_mb: limit for the volumes in the page.

    Returns:
        The page.

    Raises:
        FileError: there is no such patient, a file cannot be read or written, or is too large.
    """
    options = options or CaseOptions()
    found = _find(run, case, options)
    with process_group(options.device) as ranks, torch.inference_mode():
        model, task = run.model(device=ranks.device), run.task(device=ranks.device)
        picture = task.picture(model, found)
    scene = scene_of_picture(found.name, picture, run.method.structures)
    page = run.path / f"view-{_SEPARATORS.sub('_', found.name)}.html" if out is None else out
    about = About(_role(run, found.name), _notes(*found.images.values()))
    return write_page(scene, page, about, most_mb=most_mb)


def _find(run: Run, name: str, options: CaseOptions) -> Case:
    cases = {case.name: case for case in run.cases("all", options.data, options.labels)}
    if name not in cases:
        raise FileError(
            f"view: {options.data or run.data} has no patient {name}{did_you_mean(name, cases)}"
        )
    return cases[name]


def _role(run: Run, name: str) -> str:
    """The method, and what the run used the patient for."""
    roles = {"train": "training", "validate": "validation", "test": "test"}
    split = run.plan.split
    used = [word for part, word in roles.items() if name in set(getattr(split, part))]
    role = f"a {' and '.join(used)} patient" if used else "a patient of no part of its split"
    return f"{run.plan.method}; {role}"


def _notes(*images: File) -> list[str]:
    return [_SYNTHETIC] if any(is_synthetic(Path(image)) for image in images) else []


def _read(path: File, frame: int | None) -> Volume:
    volume = read_dicom_folder(path) if Path(path).is_dir() else read_nifti(path)
    if not volume.data.numel():
        raise FileError(f"view: {path} has no voxels")
    if frame is None or volume.channels == 1:
        return volume
    if not 1 <= frame <= volume.channels:
        raise FileError(
            f"view: --frame must be a time point of {path}, 1 to {volume.channels}; got {frame}"
        )
    return volume.with_data(volume.data[frame - 1 : frame])


def _layer(name: str, path: File, volume: Volume) -> Layer:
    data = volume.data
    values = data.unique()
    if bool((values == values.round()).all()) and len(values) <= _MOST_LABELS:
        mask = volume.with_data(data.long())
        single = values.tolist() in ([0, 1], [1])
        return Layer(name, mask, labels=named_labels(mask, {1: name} if single else {}))
    low, high = float(values.min()), float(values.max())
    if data.is_floating_point() and low >= 0 and high <= 1:
        return Layer(name, volume, "map")
    raise FileError(
        f"view: {path} must be a mask of at most {_MOST_LABELS} whole numbers or a map of values "
        f"from 0 to 1; its {len(values)} values lie in {low:g} to {high:g}"
    )


def _stem(path: File) -> str:
    return Path(path).resolve().name.removesuffix(".gz").removesuffix(".nii")


def _named(paths: Sequence[File]) -> dict[str, File]:
    """Files by the shortest of their names that differ: a file's, with its folder, the whole."""
    names = [_stem(path) for path in paths]
    if len(set(names)) < len(names):
        names = [f"{Path(p).resolve().parent.name}/{_stem(p)}" for p in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return dict(zip(names, paths, strict=True))


def _geometry(volume: Volume) -> str:
    size = " x ".join(map(str, volume.shape))
    spacing = " x ".join(f"{mm:.3g}" for mm in volume.spacing_mm)
    frames = f", {volume.channels} time points" if volume.channels > 1 else ""
    return f"{size} voxels of {spacing} mm{frames}"

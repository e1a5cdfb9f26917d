"""Where and how predictions are written: as a folder a case, for nnU-Net, BIDS or DICOM."""

import csv
import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

import cmrfast
from cmrfast.atomic import atomic_write
from cmrfast.data.datasets import Case, Labelling
from cmrfast.data.datasets.bids import DESCRIPTION
from cmrfast.data.datasets.layout import natural_key
from cmrfast.data.dicom_seg import write_dicom_seg
from cmrfast.data.nifti import read_nifti, write_nifti
from cmrfast.data.prepare import resample_labels
from cmrfast.data.volume import Volume, equals
from cmrfast.errors import FileError
from cmrfast.files import read_json, take
from cmrfast.methods import Output, Prediction

TABLE = "predictions.csv"
_VERSION_OF_BIDS = "1.9.0"


class Outputs(ABC):
    """Files of predictions in one folder.

    Masks are uint8 and other images float32, whatever the dtype of the input.
    """

    #: The name for ``--like``.
    name: ClassVar[str]
    #: Where in the folder ``facts_file`` lies.
    facts: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def facts_file(self, case: Case) -> Path:
        """The JSON file of what is known about a case besides its images."""

    @abstractmethod
    def images(self, case: Case, prediction: Prediction) -> Mapping[Path, Output]:
        """The images to write, by file."""

    def write(self, case: Case, prediction: Prediction, made_by: Mapping[str, Any]) -> list[str]:
        """Write a case, its facts last; returns the names of its files."""
        facts = self.facts_file(case)
        images = self.images(case, prediction)
        facts.unlink(missing_ok=True)  # first, so that an interrupted case does not look finished
        for path, output in images.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.write_image(path, output)
            if path.name.endswith("_dseg.nii.gz"):
                _write_values(path, output.structures)
        names = [str(path.relative_to(self.folder)) for path in images]
        content = {"case": case.name, "made_by": made_by, "images": names, **prediction.facts}
        facts.parent.mkdir(parents=True, exist_ok=True)
        _write_text(facts, json.dumps(content, indent=1) + "\n")
        return names

    def write_image(self, path: Path, output: Output) -> None:
        """Write one image, as NIfTI; DICOM slices have no header to take over."""
        like = None if output.like.is_dir() else output.like
        write_nifti(path, output.volume, like=like, keep_dtype=False)

    def made_by(self, case: Case) -> Any:
        """What made the files of a case; None where they are not complete."""
        try:
            stored = read_json(self.facts_file(case))
            names = take(stored, "images", list)
            whole = all((self.folder / name).exists() for name in names)
            return take(stored, "made_by", dict) if whole else None
        except (OSError, ValueError, TypeError):
            return None

    def write_table(self) -> None:
        """Write the facts of all cases in the folder as one table: a row a case or, of facts that
        are lists, such as the transforms of slices, a row an item."""
        files = sorted(self.folder.glob(self.facts), key=lambda path: natural_key(str(path)))
        rows = [row for path in files for row in _rows(read_json(path))]
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _write_text(self.folder / TABLE, table.getvalue())


class CaseFolders(Outputs):
    """``<case>/<image>.nii.gz`` and ``<case>/prediction.json``."""

    name = "folders"
    facts = "*/prediction.json"

    def facts_file(self, case: Case) -> Path:
        """The JSON file in the folder of the case."""
        return case_folder(self.folder, case.name) / "prediction.json"

    def images(self, case: Case, prediction: Prediction) -> Mapping[Path, Output]:
        """Every image of the prediction."""
        folder = case_folder(self.folder, case.name)
        return {folder / f"{name}.nii.gz": out for name, out in prediction.images.items()}


class DicomSegmentations(CaseFolders):
    """``<case>/<mask>.dcm``, DICOM segmentations of folders of DICOM slices."""

    name = "dicom-seg"

    def images(self, case: Case, prediction: Prediction) -> Mapping[Path, Output]:
        """Every mask of the prediction."""
        masks = {n: out for n, out in prediction.images.items() if out.structures}
        if not masks or not all(out.like.is_dir() for out in masks.values()):
            raise FileError(
                f"predict: dicom-seg takes masks on folders of DICOM slices; {case.name} has none"
            )
        folder = case_folder(self.folder, case.name)
        return {folder / f"{name}.dcm": out for name, out in masks.items()}

    def write_image(self, path: Path, output: Output) -> None:
        """Write one mask with its structures as segments."""
        write_dicom_seg(path, output.volume, output.structures, output.like)


class NnunetLabels(Outputs):
    """``<case>.nii.gz``, one a case: values of ``dataset.json`` on the grid of channel 0000."""

    name = "nnunet"
    facts = ".facts/*.json"

    def facts_file(self, case: Case) -> Path:
        """The JSON file in a hidden folder, as nnU-Net takes all others for labels."""
        return case_folder(self.folder / ".facts", f"{case.name}.json")

    def images(self, case: Case, prediction: Prediction) -> Mapping[Path, Output]:
        """The masks of the prediction drawn over each other."""
        channel = _first_channel(case)
        grid = read_nifti(channel)
        masks = [out for out in prediction.images.values() if out.structures]
        if not masks:
            raise FileError(f"predict: of {case.name} there is no mask that nnU-Net could take")
        like = channel if any(out.like == channel for out in masks) else masks[0].like
        drawn = [out for out in masks if out.like == like]
        labelling = _labelling_of(case, {name for out in drawn for name in out.structures.values()})
        first = drawn[0].volume
        values = torch.zeros(first.shape, dtype=torch.uint8)
        for number, name in enumerate(labelling.classes, start=1):  # what lies inside last
            own = (theirs for theirs, ours in labelling.ours.items() if ours == number)
            stored = next(own, 0)
            for out in drawn:
                for value in (v for v, structure in out.structures.items() if structure == name):
                    values[equals(out.volume.data[0].cpu(), value)] = stored
        if not first.shares_grid(grid):
            matrices = first.world_from_vox, grid.world_from_vox
            values = resample_labels(values, *matrices, grid.shape)
        name = self.facts_file(case).name.replace(".json", ".nii.gz")
        return {self.folder / name: Output(Volume(values[None], grid.world_from_vox), channel)}


class BidsDerivatives(Outputs):
    """``sub-<case>/anat/sub-<case>_label-<structure>_mask.nii.gz`` and the like."""

    name = "bids"
    facts = "sub-*/anat/*_desc-cmrfast_prediction.json"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._cases: dict[str, str] = {}

    def facts_file(self, case: Case) -> Path:
        """The JSON file in the folder of the subject."""
        return self._start(case, "desc-cmrfast_prediction.json")

    def images(self, case: Case, prediction: Prediction) -> Mapping[Path, Output]:
        """Masks as ``mask`` or ``dseg``, other images named by ``desc``."""
        folder, files = self.facts_file(case).parent, {}
        folder.mkdir(parents=True, exist_ok=True)
        self._describe()
        for name, out in prediction.images.items():
            files[self._start(case, f"{_ending(name, out)}.nii.gz")] = out
        return files

    def _start(self, case: Case, ending: str) -> Path:
        label = _alphanumeric(case.name.removeprefix("sub-"))
        if not label or self._cases.setdefault(label, case.name) != case.name:
            raise FileError(
                f"predict: {case.name!r} cannot be a subject of BIDS, whose labels are letters and "
                "digits and differ"
            )
        return self.folder / f"sub-{label}" / "anat" / f"sub-{label}_{ending}"

    def _describe(self) -> None:
        content = {
            "Name": "Predictions of cmrfast",
            "BIDSVersion": _VERSION_OF_BIDS,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "cmrfast", "Version": cmrfast.__version__}],
        }
        _write_text(self.folder / DESCRIPTION, json.dumps(content, indent=1) + "\n")


#: Name for ``--like`` → how predictions are written.
LIKE: Mapping[str, type[Outputs]] = {
    outputs.name: outputs
    for outputs in (CaseFolders, NnunetLabels, BidsDerivatives, DicomSegmentations)
}


def case_folder(out: Path, case: str) -> Path:
    """The folder of a case, directly in ``out``; a name that would lead elsewhere is refused."""
    if case in ("", ".", "..") or any(mark in case for mark in "/\\\0"):
        raise FileError(f"predict: {case!r} cannot be the name of a case's folder")
    return out / case


def _first_channel(case: Case) -> Path:
    """The image of channel 0000, by its name among the others."""
    channels = [path for path in case.images.values() if re.search(r"_\d{4}\.nii", path.name)]
    if not channels:
        raise FileError(
            f"predict: {case.name} has no file such as CASE_0000.nii.gz; nnunet takes the grid and "
            "the values of an nnU-Net data set"
        )
    path = channels[0]
    return path.with_name(re.sub(r"_\d{4}(\.nii(\.gz)?)$", r"_0000\1", path.name))


def _labelling_of(case: Case, structures: set[str]) -> Labelling:
    """The labelling with the values of some structures."""
    for labelling in case.labelling.values():
        if labelling.on_all and structures <= labelling.classes.keys():
            return labelling
    raise FileError(
        f"predict: the dataset.json of {case.name} must name {', '.join(sorted(structures))}; "
        "it does not"
    )


def _ending(name: str, out: Output) -> str:
    """The end of a BIDS file name: what an image shows, and its suffix."""
    if len(out.structures) == 1:
        (structure,) = out.structures.values()
        return f"label-{_alphanumeric(structure)}_mask"
    return f"desc-{_alphanumeric(name)}_{'dseg' if out.structures else 'map'}"


def _alphanumeric(name: str) -> str:
    return re.sub(r"[\W_]", "", name, flags=re.ASCII)


def _write_values(path: Path, structures: Mapping[int, str]) -> None:
    """The table of a BIDS segmentation's values beside it."""
    lines = ["index\tname", *(f"{value}\t{name}" for value, name in structures.items())]
    table = path.with_name(path.name.replace("_dseg.nii.gz", "_dseg.tsv"))
    _write_text(table, "\n".join(lines) + "\n")


def _rows(facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of a table: values of the case, and for each list of objects a row an object."""
    own = {n: v for n, v in facts.items() if n not in ("made_by", "images")}
    lists = {n: v for n, v in own.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    common = _flat({name: value for name, value in own.items() if name not in lists})
    if not lists:
        yield common
    for items in lists.values():
        for item in items:
            yield {**common, **_flat(item)}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists as one column an entry: ``theta 0 1``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list):
            flat |= _flat({f"{name} {n}": entry for n, entry in enumerate(value)})
        else:
            flat[name] = value
    return flat


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, "utf-8")

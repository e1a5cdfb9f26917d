"""Write a mask as a DICOM segmentation of the slices that it was drawn on."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cmrfast
from cmrfast.atomic import atomic_write
from cmrfast.data.dicom import read_slices, world_from_slices
from cmrfast.data.volume import Volume, equals, same_grid
from cmrfast.errors import FileError

_ANATOMY, _ABNORMAL = "AnatomicalStructure", "MorphologicallyAbnormalStructure"
#: Structure → SNOMED CT category and type, by their names in pydicom.
_CODES = {
    "lv": (_ANATOMY, "LeftVentricle"),
    "rv": (_ANATOMY, "RightVentricle"),
    "myocardium": (_ANATOMY, "LeftVentricleMyocardium"),
    "brain": (_ANATOMY, "Brain"),
    "edema": (_ABNORMAL, "Edema"),
}


def write_dicom_seg(
    path: str | os.PathLike[str],
    labels: Volume,
    structures: Mapping[int, str],
    source: str | os.PathLike[str],
    *,
    series: str | None = None,
) -> None:
    """Write a mask as a DICOM segmentation with one binary segment a structure.

    Args:
        path: of the file.
        labels: one channel of integers or bool, on the grid of the source.
        structures: value → name of the segment, such as ``scar``.
        source: the folder of DICOM slices, as ``read_dicom_folder`` takes it.
        series: the series of the source, where there are several.

    Raises:
        FileError: the source cannot be read, has other slices, or lacks what a segmentation needs.
    """
    hd, pydicom = _import_highdicom()
    slices = read_slices(Path(source), series=series)
    shape = (slices[0].columns, slices[0].rows, len(slices))
    grid = torch.from_numpy(world_from_slices(Path(source), slices))
    same_shape = labels.shape == shape
    elsewhere = same_shape and not same_grid(shape, labels.world_from_vox, grid)
    if labels.channels != 1 or not same_shape or elsewhere:
        raise FileError(
            f"write_dicom_seg: labels must be one channel on the grid of {source}, {shape}; got "
            f"{tuple(labels.data.shape)}{' at other positions' if elsewhere else ''}"
        )
    planes = torch.zeros(labels.shape, dtype=torch.uint8)
    for segment, value in enumerate(structures, start=1):
        planes[equals(labels.data[0].cpu(), value)] = segment
    frames = planes.permute(2, 1, 0).numpy()  # rows of a slice are the second axis of a volume
    try:
        files = {path: pydicom.dcmread(path) for path in dict.fromkeys(s.path for s in slices)}
        if slices[0].frame is None:
            sources = [files[s.path] for s in slices]
        else:  # frames of one file, in the order of the file
            sources = list(files.values())
            frames = frames[np.argsort([s.frame or 0 for s in slices])]
        file = hd.seg.Segmentation(
            source_images=sources,
            pixel_array=frames,
            segmentation_type="BINARY",
            segment_descriptions=[
                _describe(hd, number, name)
                for number, name in enumerate(structures.values(), start=1)
            ],
            series_instance_uid=hd.UID(),
            series_number=1000,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="cmrfast",
            manufacturer_model_name="cmrfast",
            software_versions=cmrfast.__version__,
            device_serial_number="0",
            omit_empty_frames=False,
        )
        with atomic_write(Path(path)) as temporary:
            file.save_as(temporary)
    except OSError as error:
        raise FileError(f"write_dicom_seg: {path}: {error.strerror or error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(
            f"write_dicom_seg: {source} lacks what a segmentation needs: {error}"
        ) from error


def _describe(hd: Any, number: int, name: str) -> Any:
    """A segment and its SNOMED CT codes; a structure that is not listed is a lesion."""
    from pydicom.sr.codedict import codes

    category, kind = _CODES.get(name, (_ABNORMAL, "Lesion"))
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=getattr(codes.SCT, category),
        segmented_property_type=getattr(codes.SCT, kind),
        algorithm_type="AUTOMATIC",
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="cmrfast",
            version=cmrfast.__version__,
            family=codes.DCM.ArtificialIntelligence,
        ),
    )


def _import_highdicom() -> tuple[Any, Any]:
    try:
        import highdicom
        import highdicom.seg
        import pydicom
    except ImportError as error:
        raise ImportError(
            "write_dicom_seg: needs the extra dicom-seg: pip install 'cmrfast[dicom-seg]'"
        ) from error
    return highdicom, pydicom

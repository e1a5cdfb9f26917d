"""ACDC 2017 (Bernard et al.): short-axis cine of 150 patients, labelled at two frames.

::

    database/training/patient001/
      Info.cfg                          ED, ES (frame numbers from 1), Group, Height, Weight
      patient001_4d.nii.gz
      patient001_frame01.nii.gz         patient001_frame01_gt.nii.gz
      patient001_frame12.nii.gz         patient001_frame12_gt.nii.gz

Only Info.cfg says which frame is ED: it is not always the first one, nor the lower number.
"""

import re
from pathlib import Path

from cmrfast.data.datasets.case import Labelling
from cmrfast.data.datasets.layout import Draft, Layout, Place, read_pairs, stem

_PHASES = ("ED", "ES")


def _place(path: Path) -> Place | None:
    case = path.parent.name
    match = re.fullmatch(rf"{re.escape(case)}_(4d|frame\d+)(_gt)?", stem(path) or "")
    return match and Place(case, "label" if match[2] else "image", match[1], path.parent)


def _finish(draft: Draft) -> None:
    """Name the frames ED and ES; drop frames that Info.cfg does not mention."""
    draft.info.update(read_pairs(draft.folder() / "Info.cfg", ":", draft))
    images, labels = draft.images, draft.labels
    draft.images = {"4d": images["4d"]} if "4d" in images else {}
    draft.labels = {}
    for phase in _PHASES:
        number = draft.info.get(phase, "")
        if not re.fullmatch(r"\d{1,4}", number):
            draft.faults.append(f"Info.cfg must give {phase} as a frame number; got {number!r}")
            continue
        frame = f"frame{int(number):02d}"
        if frame in images:
            draft.images[phase] = images[frame]
        if frame in labels:
            draft.labels[phase] = labels[frame]


def _labelling(phase: str) -> Labelling:
    return Labelling(
        on=phase,
        ours={0: 0, 3: 1, 2: 2, 1: 3},
        classes={"lv": (1,), "myocardium": (2,), "rv": (3,)},
    )


LAYOUT = Layout(
    name="acdc",
    example="patient001/patient001_frame01.nii.gz",
    images=_PHASES,
    labels=_PHASES,
    labelling={phase: _labelling(phase) for phase in _PHASES},
    place=_place,
    finish=_finish,
)

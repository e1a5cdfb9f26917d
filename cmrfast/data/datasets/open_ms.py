"""open_ms_data (Lesjak et al., Ljubljana): FLAIR at two visits, with a mask of all changes.

::

    longitudinal/coregistered/patient01/
      study1_FLAIR.nii.gz  study2_FLAIR.nii.gz      (likewise T1W, T2W: earlier_T1W and so on)
      gt.nii.gz                                     any change; one consensus mask, no direction
      brainmask.nii.gz
    longitudinal/patient_info.csv                   read as ``info``

The raw studies and the cross-sectional part are ignored: raw ``gt`` lies on the common grid, not
on the grid of the raw images.
"""

import re
from pathlib import Path

from cmrfast.data.datasets.case import binary
from cmrfast.data.datasets.layout import Draft, Layout, Place, read_pairs, stem

_VISITS = {"1": "earlier", "2": "later"}
_LABELS = {"gt": "consensus", "brainmask": "brain"}


def _place(path: Path) -> Place | None:
    case, name = path.parent.name, stem(path) or ""
    coregistered = "cross_sectional" not in path.parts and path.parent.parent.name != "raw"
    if not (coregistered and re.fullmatch(r"patient\d+", case)):
        return None
    if name in _LABELS:
        return Place(case, "label", _LABELS[name], path.parent)
    match = re.fullmatch(r"study([12])_(FLAIR|T1W|T2W)", name)
    if not match:
        return None
    contrast = "" if match[2] == "FLAIR" else f"_{match[2]}"
    return Place(case, "image", _VISITS[match[1]] + contrast, path.parent)


def _finish(draft: Draft) -> None:
    longitudinal = draft.folder().parent.parent
    for name in ("patient_info.csv", "demographics.csv"):
        if not (longitudinal / name).is_file():
            continue
        rows = read_pairs(longitudinal / name, ",", draft)
        number = draft.name.removeprefix("patient")
        columns = rows.get("patient_id", "").split(",")
        values = rows.get(number, rows.get(str(int(number)), "")).split(",")
        draft.info.update((c, v) for c, v in zip(columns, values, strict=False) if c and v)
        return


LAYOUT = Layout(
    name="open_ms",
    example="longitudinal/coregistered/patient01/study1_FLAIR.nii.gz",
    images=("earlier", "later"),
    labels=("consensus", "brain"),
    labelling={
        "consensus": binary("new_lesion", on="later"),
        "brain": binary("brain", on="later"),
    },
    place=_place,
    finish=_finish,
)

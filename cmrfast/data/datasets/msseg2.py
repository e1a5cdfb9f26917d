"""MSSEG-2 (2021): two FLAIR images per patient in a halfway space, masks of new lesions.

::

    013/
      flair_time01_on_middle_space.nii.gz     flair_time02_on_middle_space.nii.gz
      ground_truth_expert1.nii.gz ... ground_truth_expert4.nii.gz
      ground_truth.nii.gz                     consensus
      all_lesions_time01.nii.gz               all lesions of a visit; the public data lack them
      all_lesions_time02.nii.gz

Lesions that only grow are not labelled; a mask may be empty.
"""

import re
from pathlib import Path

from cmrfast.data.datasets.case import binary
from cmrfast.data.datasets.layout import Layout, Place, stem

_IMAGES = {
    "flair_time01_on_middle_space": "earlier",
    "flair_time02_on_middle_space": "later",
}
_RATERS = ("rater1", "rater2", "rater3", "rater4")
_ALL = {"all_lesions_time01": "earlier_lesions", "all_lesions_time02": "later_lesions"}


def _place(path: Path) -> Place | None:
    case, name = path.parent.name, stem(path) or ""
    if name in _IMAGES:
        return Place(case, "image", _IMAGES[name], path.parent)
    if name in _ALL:
        return Place(case, "label", _ALL[name], path.parent)
    match = re.fullmatch(r"ground_truth(?:_expert([1-4]))?", name)
    if not match:
        return None
    return Place(case, "label", f"rater{match[1]}" if match[1] else "consensus", path.parent)


LAYOUT = Layout(
    name="msseg2",
    example="013/flair_time01_on_middle_space.nii.gz",
    images=("earlier", "later"),
    labels=("consensus", *_RATERS),
    labelling={
        **{name: binary("new_lesion", on="later") for name in ("consensus", *_RATERS)},
        **{name: binary("lesion", on="later") for name in _ALL.values()},
    },
    place=_place,
)

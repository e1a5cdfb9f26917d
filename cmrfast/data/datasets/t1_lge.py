"""T1 maps with LGE of the same hearts: cmrfast's own layout, as no public data set has both.

One folder per subject, named after the subject; the files may also end in ``.nii``::

    <root>/<subject>/
      t1.nii.gz               T1 map in ms, one or more short-axis slices (I, J, K)
      lge.nii.gz              LGE, any intensity scale, on its own grid
      t1_myocardium.nii.gz    0/1, left ventricular myocardium on the grid of t1
      lge_myocardium.nii.gz   0/1, the same on the grid of lge
      lge_reference.nii.gz    0/1, healthy myocardium on the grid of lge; optional
      lge_lesion.nii.gz       0/1, hyper-enhancement on the grid of lge; optional

Slices of both images are matched by their position in the scanner, so both headers must have
correct positions. Without ``lge_reference`` or ``lge_lesion``, the method derives them from LGE.
"""

from pathlib import Path

from cmrfast.data.datasets.case import binary
from cmrfast.data.datasets.layout import Layout, Place, stem

_IMAGES = ("t1", "lge")
_LABELLING = {
    "t1_myocardium": binary("myocardium", on="t1"),
    "lge_myocardium": binary("myocardium", on="lge"),
    "lge_reference": binary("reference", on="lge"),
    "lge_lesion": binary("lesion", on="lge"),
}


def _place(path: Path) -> Place | None:
    case, name = path.parent.name, stem(path) or ""
    if name in _IMAGES:
        return Place(case, "image", name, path.parent)
    return Place(case, "label", name, path.parent) if name in _LABELLING else None


LAYOUT = Layout(
    name="t1_lge",
    example="<subject>/t1.nii.gz and <subject>/lge_myocardium.nii.gz",
    images=_IMAGES,
    labels=("t1_myocardium", "lge_myocardium"),
    labelling=_LABELLING,
    place=_place,
)

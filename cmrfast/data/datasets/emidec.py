"""EMIDEC 2020 (Lalande et al.): LGE of 150 patients, with infarct and no-reflow.

::

    emidec-dataset-1.0.1/
      Case N006.txt                           clinical data, read as ``info``; mind the space
      Case_N006/Images/Case_N006.nii.gz
      Case_N006/Contours/Case_N006.nii.gz     (not public for the test set)

The sform of the headers has unit steps; the spacing is in pixdim. Slices were shifted, which left
borders of exact zeros: exclude them from a normalisation.
"""

from pathlib import Path

from cmrfast.data.datasets.case import Labelling
from cmrfast.data.datasets.layout import Draft, Layout, Place, read_pairs, stem


def _place(path: Path) -> Place | None:
    home, folder = path.parent.parent, path.parent.name
    if stem(path) != home.name or folder not in ("Images", "Contours"):
        return None
    return Place(home.name, "image" if folder == "Images" else "label", "LGE", home)


def _finish(draft: Draft) -> None:
    root = draft.folder().parent.parent
    for name in (f"{draft.name.replace('_', ' ')}.txt", f"{draft.name}.txt"):
        if (root / name).is_file():
            draft.info.update(read_pairs(root / name, ":", draft))
            return


LAYOUT = Layout(
    name="emidec",
    example="Case_N006/Images/Case_N006.nii.gz",
    images=("LGE",),
    labels=("LGE",),
    labelling={
        "LGE": Labelling(
            on="LGE",
            ours={value: value for value in range(5)},
            classes={
                "lv": (1,),
                "myocardium": (2, 3, 4),
                "scar": (3, 4),
                "no_reflow": (4,),
            },
        )
    },
    place=_place,
    finish=_finish,
    folders=frozenset({"Images", "Contours"}),
)

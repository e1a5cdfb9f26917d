"""MyoPS 2020 and its successors: C0, LGE and T2 on one grid per case; few, thick slices.

::

    train25/            myops_training_101_C0.nii.gz  ..._DE.nii.gz  ..._T2.nii.gz
    train25_myops_gd/   myops_training_101_gd.nii.gz
    test20/             myops_test_201_C0.nii.gz      (masks not public)

MyoPS++ and CARE use names such as ``Case0001_LGE.nii.gz``; their sequences may be missing or not
aligned. DE and LGE are the same sequence, here ``LGE``; the mask is called ``LGE`` as well.
"""

import re
from pathlib import Path

from cmrfast.data.datasets.case import Labelling
from cmrfast.data.datasets.layout import Draft, Layout, Place, stem


def _place(path: Path) -> Place | None:
    pattern = r"(myops_(?:training|test)_\d+|Case\d+)_(C0|DE|LGE|T2|gd)"
    match = re.fullmatch(pattern, stem(path) or "")
    if not match:
        return None
    if match[2] == "gd":
        return Place(match[1], "label", "LGE")
    return Place(match[1], "image", "LGE" if match[2] == "DE" else match[2])


def _finish(draft: Draft) -> None:
    match = re.match(r"myops_(training|test)_", draft.name)
    if match:
        draft.info["set"] = match[1]


LAYOUT = Layout(
    name="myops",
    example="train25/myops_training_101_DE.nii.gz",
    images=("C0", "LGE", "T2"),
    labels=("LGE",),
    labelling={
        "LGE": Labelling(
            on="LGE",
            ours={0: 0, 500: 1, 200: 2, 600: 3, 1220: 4, 2221: 5},
            classes={
                "lv": (1,),
                "myocardium": (2, 4, 5),
                "rv": (3,),
                "edema": (4, 5),  # the challenge counts scar as inside the edema zone
                "scar": (5,),
            },
        )
    },
    place=_place,
    finish=_finish,
    folders=frozenset({"train25", "train25_myops_gd", "test20"}),
)

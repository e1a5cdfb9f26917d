"""MS-CMRSeg 2019 (Zhuang et al.): C0 (bSSFP), T2 and LGE of 45 patients, three grids each.

::

    C0LET2_nii45_for_challenge19/
      c0t2lge/   patient1_C0.nii.gz  patient1_T2.nii.gz  patient1_LGE.nii.gz
      c0gt/      patient1_C0_manual.nii.gz      (likewise t2gt/, lgegt/)
    C0LET2_gt_for_challenge19/                  masks released after the challenge

The three sequences have different slices: pair them through ``slice_pairs``, never by index.
"""

import re
from pathlib import Path

from cmrfast.data.datasets.case import Labelling
from cmrfast.data.datasets.layout import Layout, Place, stem

_SEQUENCES = ("C0", "T2", "LGE")


def _place(path: Path) -> Place | None:
    match = re.fullmatch(r"(patient\d+)_(C0|T2|LGE)(_manual)?", stem(path) or "")
    return match and Place(match[1], "label" if match[3] else "image", match[2])


def _labelling(sequence: str) -> Labelling:
    return Labelling(
        on=sequence,
        ours={0: 0, 500: 1, 200: 2, 600: 3},
        classes={"lv": (1,), "myocardium": (2,), "rv": (3,)},
    )


LAYOUT = Layout(
    name="mscmrseg",
    example="c0t2lge/patient1_LGE.nii.gz and lgegt/patient1_LGE_manual.nii.gz",
    images=_SEQUENCES,
    labels=_SEQUENCES,
    labelling={sequence: _labelling(sequence) for sequence in _SEQUENCES},
    place=_place,
    folders=frozenset(
        {
            *("C0LET2_nii45_for_challenge19", "C0LET2_gt_for_challenge19"),
            *("c0t2lge", "c0gt", "t2gt", "lgegt"),
            *("C0_manual_10", "T2_manual_10", "LGE_manual_35_TestData"),
        }
    ),
)

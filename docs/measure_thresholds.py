"""The Dice that thresholds reach on each synthetic data set, if chosen with the labels.

Run it with ``python docs/measure_thresholds.py``: about a minute on two cores. A network that is
not clearly better has learnt nothing but intensity.
"""

import tempfile

import numpy as np
import numpy.typing as npt

from cmrfast.data import open_dataset
from cmrfast.data.datasets import Case
from cmrfast.data.phantom import write_phantoms

#: Data set -> image, mask and structure to segment.
STRUCTURES = {
    "t1_lge": [("lge", "lge_lesion", "lesion")],
    "emidec": [("LGE", "LGE", "scar"), ("LGE", "LGE", "myocardium")],
    "myops": [("LGE", "LGE", "scar"), ("T2", "LGE", "edema")],
    "mscmrseg": [("C0", "C0", "lv"), ("LGE", "LGE", "myocardium"), ("LGE", "LGE", "rv")],
    "msseg2": [("later", "consensus", "new_lesion")],
    "open_ms": [("later", "consensus", "new_lesion")],
}


def best_band(image: npt.NDArray[np.generic], mask: npt.NDArray[np.bool_]) -> float:
    """The highest Dice of the masks ``low <= image < high``, over 64 percentiles for each bound."""
    edges = np.unique(np.percentile(image, np.linspace(0, 100, 64)))
    place = np.digitize(image, edges[1:-1])
    counts = np.bincount(place.ravel(), minlength=len(edges) - 1)
    hits = np.bincount(place[mask], minlength=len(edges) - 1)
    return max(
        float((2 * hits[low:].cumsum() / (counts[low:].cumsum() + mask.sum())).max())
        for low in range(len(counts))
    )


def dice_of_a_case(case: Case, image: str, label: str, structure: str) -> float | None:
    """Dice of the best thresholds; None where the patient has no such structure."""
    mask = case.labelling[label].mask(case.label(label), structure).data[0].numpy()
    return best_band(case.image(image).data[0].numpy(), mask) if mask.any() else None


def main() -> None:
    """Print one line per structure."""
    print(f"{'data set':<10} {'structure':<22} {'Dice of the best two thresholds':>32}")
    for layout, structures in STRUCTURES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_phantoms(layout, folder, cases=4, seed=1, shrink=1.5)
            cases = open_dataset(layout, folder)
            for image, label, structure in structures:
                scores = [dice_of_a_case(case, image, label, structure) for case in cases]
                values = [dice for dice in scores if dice is not None]
                where = f"{structure} in {image}"
                print(f"{layout:<10} {where:<22} {np.mean(values):>25.2f} ± {np.std(values):.2f}")


if __name__ == "__main__":
    main()

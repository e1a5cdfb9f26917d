"""How far a threshold gets on each synthetic data set: the best there is, chosen with the labels.

Run it with ``python docs/measure_thresholds.py``: about a minute on two cores. A network that is
not clearly above these figures has learnt nothing but brightness.
"""

import tempfile

import numpy as np
import numpy.typing as npt

from cmrfast.data import open_dataset
from cmrfast.data.datasets import Case
from cmrfast.data.phantom import LAYOUTS, write_phantoms

#: Data set -> what to look for: image, mask, structure.
SOUGHT = {
    "t1_lge": [("lge", "lge_lesion", "lesion")],
    "emidec": [("LGE", "LGE", "scar"), ("LGE", "LGE", "myocardium")],
    "myops": [("LGE", "LGE", "scar"), ("T2", "LGE", "edema")],
    "mscmrseg": [("C0", "C0", "lv"), ("LGE", "LGE", "myocardium"), ("LGE", "LGE", "rv")],
    "msseg2": [("later", "consensus", "new_lesion")],
    "open_ms": [("later", "consensus", "new_lesion")],
}


def best_band(image: npt.NDArray[np.generic], mask: npt.NDArray[np.bool_]) -> float:
    """The highest Dice of all masks ``low <= image < high``, of 64 percentiles each."""
    edges = np.unique(np.percentile(image, np.linspace(0, 100, 64)))
    place = np.digitize(image, edges[1:-1])
    counts = np.bincount(place.ravel(), minlength=len(edges) - 1)
    hits = np.bincount(place[mask], minlength=len(edges) - 1)
    return max(
        float((2 * hits[low:].cumsum() / (counts[low:].cumsum() + mask.sum())).max())
        for low in range(len(counts))
    )


def dice_of_a_case(case: Case, image: str, label: str, structure: str) -> float | None:
    """None where the patient has no such structure."""
    mask = case.labelling[label].mask(case.label(label), structure).data[0].numpy()
    return best_band(case.image(image).data[0].numpy(), mask) if mask.any() else None


def main() -> None:
    """Print a line for each structure."""
    method = {layout: name for name, known in LAYOUTS.items() for layout in known}
    print(f"{'data set':<10} {'structure':<22} {'Dice of the best two thresholds':>32}")
    for layout, sought in SOUGHT.items():
        with tempfile.TemporaryDirectory() as folder:
            write_phantoms(method[layout], folder, cases=4, seed=1, layout=layout, shrink=1.5)
            cases = open_dataset(layout, folder)
            for image, label, structure in sought:
                found = [dice_of_a_case(case, image, label, structure) for case in cases]
                there = [dice for dice in found if dice is not None]
                where = f"{structure} in {image}"
                print(f"{layout:<10} {where:<22} {np.mean(there):>25.2f} ± {np.std(there):.2f}")


if __name__ == "__main__":
    main()

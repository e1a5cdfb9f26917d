"""Apply a trained run to a folder of NIfTI files: write masks and a table of volumes in ml.

``python examples/predict_folder.py RUN FOLDER OUT``. Without arguments, it first trains a small run
on synthetic patients, in half a minute. For methods that read one image per case.
"""

import csv
import sys
from math import prod
from pathlib import Path

from cmrfast.data import read_nifti
from cmrfast.data.phantom import write_phantoms
from cmrfast.runs import predict
from cmrfast.train import Run, train

#: A network small enough for a demonstration; leave these changes out for the paper's network.
SMALL = {"image": 64, "root": 32, "units": (1, 1, 1), "width": 16, "depth": 1, "heads": 2}
SMALL |= {"decoder": (16, 16, 8, 8, 8), "variant": "mtl", "batch": 4, "lr": 3e-3}


def images_in(folder: Path) -> list[Path]:
    """All NIfTI images below a folder, except for the masks of the data set."""
    paths = [*folder.rglob("*.nii"), *folder.rglob("*.nii.gz")]
    return sorted(path for path in paths if path.parent.name != "Contours")


def volumes_ml(masks: Path) -> dict[str, str]:
    """The volume of every mask of a case, by the name of the mask."""
    volumes = {}
    for path in sorted(masks.glob("*.nii.gz")):
        mask = read_nifti(path)
        ml = int((mask.data > 0).sum()) * prod(mask.spacing_mm) / 1000
        volumes[f"{path.name.removesuffix('.nii.gz')}_ml"] = f"{ml:.2f}"
    return volumes


def main(words: list[str]) -> Path:
    """Predict, write ``volumes.csv`` next to the masks, and return its path."""
    if words:
        run, folder, out = Run.open(words[0]), Path(words[1]), Path(words[2])
    else:
        folder, out = Path("demo/patients"), Path("demo/masks")
        if not folder.exists():
            write_phantoms("emidec", folder, cases=6, shrink=4)
        run = train(
            *("joint_scar", folder, "demo/run"),
            changes=SMALL,
            steps=100,
            resume=True,
            stream=sys.stderr,
        )
    outcome = predict(run, images_in(folder), out, progress=print)
    for name, reason in outcome.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    rows = [{"case": n, **volumes_ml(out / n)} for n in sorted(outcome.done + outcome.skipped)]
    table = out / "volumes.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    print(table.read_text())
    return table


if __name__ == "__main__":
    main(sys.argv[1:])

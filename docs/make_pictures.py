"""Pictures of one synthetic patient per data set, for the README: images above, labels below.

Run it with ``python docs/make_pictures.py docs/images``; about a minute on two cores.
"""

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cmrfast.data import Volume, open_dataset
from cmrfast.data.datasets import Case
from cmrfast.data.phantom import write_phantoms
from cmrfast.data.prepare import crop_or_pad
from cmrfast.viz import COLOURS, overlay

WIDTH = 900  # pixels; the README shows no more
HEART_MM, HEAD_MM = 150.0, 230.0


def cropped(volume: Volume, center_vox: list[int], side_mm: float) -> Volume:
    """A square crop of the plane, all slices."""
    plane = [round(side_mm / mm) for mm in volume.spacing_mm[:2]]
    data, matrix = crop_or_pad(
        volume.data,
        volume.world_from_vox,
        (*plane, volume.shape[2]),
        center_vox=(*center_vox, volume.shape[2] // 2),
    )
    return Volume(data, matrix)


def panels(image: Volume, label: Volume, slices: int, side_mm: float, names: dict[int, str]):
    """Pictures of slices through the labels, without and with overlays."""
    heart = side_mm == HEART_MM
    where = label.data[0].nonzero() if heart else image.data[0].gt(0).nonzero()
    center = where.double().mean(0).round().long().tolist()[:2]
    image, label = (cropped(volume, center, side_mm) for volume in (image, label))
    amount = (label.data[0] != 0).sum((0, 1))
    filled = amount.nonzero().flatten()
    if heart:
        chosen = filled[((torch.arange(slices) + 0.5) * len(filled) / slices).long()].tolist()
    else:  # few lesions: the slices with the most, not next to each other
        chosen = []
        for k in amount.argsort(descending=True).tolist():
            if len(chosen) < slices and all(abs(k - c) > 6 for c in chosen):
                chosen.append(k)
    return [
        Image.open(io.BytesIO(overlay(image, mask, slices=chosen, names=names, columns=slices)))
        for mask in (None, label)
    ]


def below(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one width stacked vertically."""
    whole = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)))
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def beside(pictures: list[Image.Image]) -> Image.Image:
    """Pictures side by side, aligned at the top."""
    whole = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)))
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width
    return whole


HEART = {1: "LV", 2: "myocardium", 3: "RV"}
#: Data set -> (number of the patient shown, its rows: image, label, slices, side, names).
SHOWN = {
    "t1_lge": (
        2,
        [
            ("t1", "t1_myocardium", 2, HEART_MM, {1: "myocardium"}),
            ("lge", "lge_lesion", 2, HEART_MM, {1: "lesion"}),
        ],
    ),
    "emidec": (
        3,
        [
            (
                "LGE",
                "LGE",
                4,
                HEART_MM,
                {1: "cavity", 2: "myocardium", 3: "infarct", 4: "no-reflow"},
            )
        ],
    ),
    "myops": (
        1,
        [(s, "LGE", 1, HEART_MM, {**HEART, 4: "edema", 5: "scar"}) for s in ("C0", "LGE", "T2")],
    ),
    "mscmrseg": (2, [(s, s, 1, HEART_MM, HEART) for s in ("C0", "T2", "LGE")]),
    "msseg2": (
        1,
        [
            ("earlier", "consensus", 2, HEAD_MM, {1: "new lesion"}),
            ("later", "consensus", 2, HEAD_MM, {1: "new lesion"}),
        ],
    ),
    "open_ms": (
        1,
        [(s, "consensus", 1, HEAD_MM, {1: "change"}) for s in ("earlier", "later", "later_T2W")],
    ),
}


def picture(case: Case, rows: list[tuple]) -> Image.Image:
    """The picture of one patient."""
    parts = []
    for image, label, slices, side_mm, names in rows:
        parts.append(below(panels(case.image(image), case.label(label), slices, side_mm, names)))
    whole = beside(parts)
    height = round(whole.height * WIDTH / whole.width)
    smaller = whole.resize((WIDTH, height), Image.Resampling.LANCZOS)
    return smaller.quantize(palette=palette(), dither=Image.Dither.NONE)


def palette() -> Image.Image:
    """Greys, and greys tinted as ``overlay`` does: few colours make small files."""
    greys = np.linspace(0, 255, 24)[:, None].repeat(3, 1)
    colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS])
    shades = np.linspace(0, 255, 12)[:, None, None] * 0.75 + 0.25 * colours
    table = np.concatenate((greys, shades.reshape(-1, 3), colours, colours / 2)).round()
    image = Image.new("P", (1, 1))
    image.putpalette(table.astype(np.uint8).flatten().tolist())
    return image


def main(out: Path, wanted: list[str]) -> None:
    """Write the pictures of all data sets, or of those wanted."""
    out.mkdir(parents=True, exist_ok=True)
    for layout in wanted or SHOWN:
        number, rows = SHOWN[layout]
        with tempfile.TemporaryDirectory() as folder:
            write_phantoms(layout, folder, cases=number, seed=1)
            case = open_dataset(layout, folder)[number - 1]
            path = out / f"phantom_{layout}.png"
            picture(case, rows).save(path, optimize=True)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"), sys.argv[2:])

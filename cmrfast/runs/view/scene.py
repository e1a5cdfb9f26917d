"""What the viewer shows of one case: an image, and masks and maps over it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from cmrfast import viz
from cmrfast.data.volume import Volume
from cmrfast.methods import Picture
from cmrfast.runs.text import in_words

#: Voxels at which two masks agree, and how they differ → name and colour.
DIFFERENCES = {
    1: ("in both", "#009e73"),
    2: ("missed by the prediction", "#d55e00"),
    3: ("only in the prediction", "#56b4e9"),
    4: ("another structure", "#cc79a7"),
}


@dataclass(frozen=True)
class Layer:
    """A mask or a map over the image.

    Args:
        name: shown beside its switch.
        volume: labels of a mask, or values of a map; on any grid.
        kind: ``mask``, with a name and a colour for each label, or ``map``, a scale of colours
            from 0 to 1.
        labels: of a mask, label → name and colour such as ``#e69f00``.
        shown: from the beginning.
    """

    name: str
    volume: Volume
    kind: Literal["mask", "map"] = "mask"
    labels: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    shown: bool = True


@dataclass(frozen=True)
class Scene:
    """An image with its layers.

    Args:
        title: of the case.
        image: with one or several channels, which are its time points.
        layers: over it, the first one lowest.
        notes: sentences about them.
    """

    title: str
    image: Volume
    layers: tuple[Layer, ...] = ()
    notes: tuple[str, ...] = ()


def named_labels(volume: Volume, names: Mapping[int, str]) -> dict[int, tuple[str, str]]:
    """Name and colour of every label in a mask or in ``names``, 0 left out.

    Example:
        >>> mask = Volume(torch.ones(1, 2, 2, 2), torch.eye(4))
        >>> named_labels(mask, {2: "scar"})
        {1: ('label 1', '#e69f00'), 2: ('scar', '#56b4e9')}
    """
    values = sorted({*names, *(int(value) for value in volume.data.unique().tolist())} - {0})
    return {
        value: (names.get(value, f"label {value}"), viz.label_colour(value)) for value in values
    }


def scene_of_picture(title: str, picture: Picture, names: Mapping[int, str]) -> Scene:
    """What a report shows of a case, for the viewer.

    Args:
        title: of the case.
        picture: its image and masks.
        names: label → structure.
    """
    names = {value: in_words(name) for value, name in names.items()}
    layers = [
        Layer(name, mask, labels=named_labels(mask, names), shown=mask is picture.predicted)
        for name, mask in picture.masks().items()
    ]
    if picture.reference is not None:
        layers.append(_difference(picture.predicted, picture.reference))
    for name, volume in picture.maps.items():
        layers.append(Layer(f"probability of {in_words(name)}", volume, "map", shown=False))
    return Scene(title, picture.image, tuple(layers))


def crop_to_labels(scene: Scene, margin_mm: float) -> Scene:
    """The box around all labels with a margin; the scene itself where it has no labels.

    Layers on another grid than the image are left as they are.
    """
    own = [layer for layer in scene.layers if layer.volume.shares_grid(scene.image)]
    drawn = [layer.volume.data.any(0) for layer in own if layer.kind == "mask"]
    labelled = torch.stack(drawn).any(0) if drawn else torch.zeros(scene.image.shape)
    if not labelled.any():
        return scene
    box = []
    for axis, (step, length) in enumerate(
        zip(scene.image.spacing_mm, scene.image.shape, strict=True)
    ):
        others = [other for other in range(3) if other != axis]
        places = labelled.bool().any(others[1]).any(others[0]).nonzero()
        margin = round(margin_mm / step)
        low = max(0, int(places.min()) - margin)
        box.append(slice(low, min(length, int(places.max()) + margin + 1)))
    layers = tuple(
        Layer(x.name, _crop(x.volume, box), x.kind, x.labels, x.shown) if x in own else x
        for x in scene.layers
    )
    note = f"Cropped to {margin_mm:g} mm around the labels."
    return Scene(scene.title, _crop(scene.image, box), layers, (*scene.notes, note))


def _crop(volume: Volume, box: list[slice]) -> Volume:
    start = torch.tensor([*(part.start for part in box), 1], dtype=torch.float64)
    world_from_vox = volume.world_from_vox.clone()
    world_from_vox[:, 3] = volume.world_from_vox @ start
    return Volume(volume.data[:, box[0], box[1], box[2]], world_from_vox)


def _difference(predicted: Volume, reference: Volume) -> Layer:
    """Where both masks agree, and how they differ where they do not."""
    p, r = predicted.data.cpu().long(), reference.data.cpu().long()
    values: Tensor = torch.zeros(p.shape, dtype=torch.uint8)
    values[(p == r) & (r != 0)] = 1
    values[(p == 0) & (r != 0)] = 2
    values[(p != 0) & (r == 0)] = 3
    values[(p != 0) & (r != 0) & (p != r)] = 4
    labels = {value: DIFFERENCES[value] for value in values.unique().tolist() if value}
    return Layer("difference", predicted.with_data(values), labels=labels, shown=False)

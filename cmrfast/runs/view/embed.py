"""A scene as HTML: its volumes as base64, the controls, and slices for browsers without WebGL 2."""

import base64
import json
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmrfast import viz
from cmrfast.data.nifti import write_nifti
from cmrfast.data.volume import Volume
from cmrfast.runs.document import asset, inline_png, text
from cmrfast.runs.view.scene import Layer, Scene

#: Assets of a page with a viewer, for ``document``.
STYLES, SCRIPTS = ("viewer.css",), ("viewer.js",)
_PLANES = {"S": "axial", "I": "axial", "A": "coronal", "P": "coronal"}
_BUTTONS = {
    "multiplanar": "All planes",
    "axial": "Axial",
    "coronal": "Coronal",
    "sagittal": "Sagittal",
    "render": "3-D",
}
_HELP = (
    "Click or drag to move the crosshair; the wheel goes to the next slice, and dragging with "
    "the right button changes the brightness. x points to the patient's right, y to the front and "
    "z to the head; the patient's left is on the right of the picture."
)


def embed_scene(scene: Scene, name: str, *, alone: bool = True) -> tuple[str, int]:
    """The HTML of one scene, without what ``embed_viewer`` adds once.

    Args:
        scene: to be shown.
        name: of its elements, unlike that of other scenes on the page.
        alone: opened with the page, and with slices for browsers that cannot show it and for print;
            else opened by a button, on a page that has slices of its own.

    Returns:
        The HTML, and how many bytes of it are volumes.
    """
    stored = [_store(volume, name, n) for n, volume in enumerate(_volumes(scene))]
    payload = "".join(tag for tag, _ in stored)
    content = json.dumps(_describe(scene, name)).replace("<", "\\u003c")  # ends no script
    start = "" if alone else "<button class=open type=button>Open in the viewer</button>"
    picture = f"<img alt='slices of {text(scene.title)}' src='{inline_png(_slices(scene))}'>"
    html = (
        f"<section class=viewer id={name} data-opened={int(alone)}>{start}"
        f"<div class=stage hidden>{_controls(scene)}"
        "<div class=canvas><canvas tabindex=0 aria-label='image with its overlays'></canvas></div>"
        f"<p class=readout aria-live=polite></p>{_layers(scene)}"
        f"<p class=note>{_HELP}</p></div>"
        f"<div class=static><p class=reason></p>{picture if alone else ''}</div>"
        f"<script type=application/json class=scene>{content}</script>{payload}</section>"
    )
    return html, sum(size for _, size in stored)


def embed_viewer() -> str:
    """NiiVue and its licences, once a page."""
    bundle = base64.b64encode(asset("niivue/niivue.umd.js.gz")).decode()
    version = json.loads(asset("niivue/version.json"))["version"]
    licences = "\n\n".join(asset(f"niivue/{name}").decode() for name in ("LICENSE", "NOTICES"))
    return (
        f"<details class=licences><summary>The viewer is NiiVue {version}: its licence</summary>"
        f"<pre>{escape(licences)}</pre></details>"
        f"<script type=text/plain id=niivue-bundle>{bundle}</script>"
    )


def _volumes(scene: Scene) -> list[Volume]:
    return [scene.image, *(layer.volume for layer in scene.layers)]


def _store(volume: Volume, name: str, number: int) -> tuple[str, int]:
    """A volume as base64 in a script element, and its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii.gz"
        write_nifti(path, _displayable(volume))
        content = base64.b64encode(path.read_bytes()).decode()
    tag = f"<script type=text/plain id={name}-{number}>{content}</script>"
    return tag, len(content)


def _displayable(volume: Volume) -> Volume:
    """The values in a dtype that every viewer reads, the smallest that holds integers."""
    data = volume.data.detach().cpu()
    if data.is_floating_point():
        return volume.with_data(data.float().nan_to_num(0.0, 0.0, 0.0))
    if data.dtype in (torch.bool, torch.uint8):
        return volume.with_data(data.byte())
    low, high = (int(edge) for edge in (data.long().min(), data.long().max()))
    if low >= 0 and high <= 255:
        return volume.with_data(data.byte())
    if max(-low - 1, high) < 2**15:
        return volume.with_data(data.short())
    return volume.with_data(data.float())


def _describe(scene: Scene, name: str) -> dict[str, Any]:
    """What the script needs to know of a scene."""
    image = scene.image
    values = image.data.detach().cpu().double().numpy()
    low, high = viz.grey_window(np.asarray(values))
    return {
        "volume": f"{name}-0",
        "vox_from_world": torch.linalg.inv(image.world_from_vox).tolist(),
        "shape": image.shape,
        "frames": image.channels,
        "window": [low, high],
        "start_mm": _start(scene),
        "plane": _plane(image),
        "flat": 1 in image.shape,
        "layers": [
            {
                "name": layer.name,
                "volume": f"{name}-{n}",
                "kind": layer.kind,
                "shown": layer.shown,
                "frames": layer.volume.channels,
                "labels": {value: list(label) for value, label in layer.labels.items()},
            }
            for n, layer in enumerate(scene.layers, start=1)
        ],
    }


def _start(scene: Scene) -> list[float]:
    """Where the crosshair begins, in mm: among the labels of the slice that has most of them.

    The labels are those of the first mask; without any it is the middle of the image.
    """
    volume, middle = scene.image, torch.tensor([n // 2 for n in scene.image.shape])
    for layer in scene.layers:
        if layer.kind == "mask" and layer.volume.data.any():
            volume, labelled = layer.volume, layer.volume.data.detach().cpu().any(0)
            k = labelled.sum((0, 1)).argmax()
            pixels = labelled[:, :, k].nonzero()
            nearest = (pixels - pixels.double().mean(0)).square().sum(1).argmin()
            middle = torch.cat([pixels[nearest], k[None]])
            break
    position: list[float] = (volume.world_from_vox[:3, :3] @ middle.double()).tolist()
    return [x + y for x, y in zip(position, volume.world_from_vox[:3, 3].tolist(), strict=True)]


def _plane(image: Volume) -> str:
    """The plane of its slices."""
    axis = 2 if 1 not in image.shape[:2] else image.shape.index(1)
    return _PLANES.get(image.orientation[axis], "sagittal")


def _controls(scene: Scene) -> str:
    """The buttons and sliders above the image."""
    planes = {_plane(scene.image): "Slice"} if 1 in scene.image.shape else _BUTTONS
    buttons = "".join(
        f"<button type=button data-plane={plane}>{label}</button>"
        for plane, label in planes.items()
    )
    frames = scene.image.channels
    frame = (
        f"<label>Time point <output>1</output> of {frames} "
        f"<input class=frame type=range min=1 max={frames} value=1></label>"
        if frames > 1
        else ""
    )
    return (
        f"<div class=controls><span class=planes role=group>{buttons}</span>{frame}"
        "<label>Image <input class=image type=range min=0 max=100 value=100></label>"
        "<label>Overlays <input class=opacity type=range min=0 max=100 value=60></label>"
        "<label><input class=smooth type=checkbox> Smooth</label></div>"
    )


def _layers(scene: Scene) -> str:
    """A switch for each layer, with the colours and names of its labels."""
    rows = "".join(
        f"<li><label><input type=checkbox data-layer={n}{' checked' if layer.shown else ''}> "
        f"{text(layer.name)}</label> {_legend(layer)}</li>"
        for n, layer in enumerate(scene.layers, start=1)
    )
    notes = "".join(f"<p class=note>{text(note)}</p>" for note in scene.notes)
    return (f"<ul class=layers>{rows}</ul>" if rows else "") + notes


def _legend(layer: Layer) -> str:
    if layer.kind == "map":
        return "<span class=scale><i></i> 0 to 1</span>"
    return " ".join(
        f"<span class=key><i style='background:{colour}'></i>{text(name)}</span>"
        for name, colour in layer.labels.values()
    )


def _slices(scene: Scene) -> bytes:
    """Slices with the first mask on the image's grid, as PNG."""
    masks = [
        layer
        for layer in scene.layers
        if layer.kind == "mask" and layer.volume.shares_grid(scene.image)
    ]
    if not masks:
        return viz.overlay(scene.image)
    names = {value: name for value, (name, _) in masks[0].labels.items()}
    volume = masks[0].volume
    return viz.overlay(scene.image, volume.with_data(volume.data[:1].long()), names=names)


def page_notes(notes: Sequence[str]) -> str:
    """Sentences above a page, in a box."""
    return f"<div class=notes>{''.join(f'<p>{text(note)}</p>' for note in notes)}</div>"

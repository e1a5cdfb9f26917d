"""The network of each method as a picture, drawn from one forward pass of the model.

Run it with ``python docs/make_networks.py``, which writes ``docs/images/network_<method>.svg``; a
minute on two cores. A box is as high as its output is large, and as wide as it has channels, both
on a logarithmic scale; the numbers below it are channels and size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from cmrfast.models import build

IMAGES = Path(__file__).parent / "images"
_KINDS = {
    "conv": ("#1f77b4", "convolutions"),
    "attention": ("#c23b83", "attention layers"),
    "up": ("#2a7f3f", "upsampling and convolutions"),
    "dense": ("#d98200", "dense layers"),
}
_COLUMN, _TEXT = 86, 11  # pixels


@dataclass(frozen=True)
class Stage:
    """A module whose output is drawn.

    Args:
        path: of the module in the model, or ``in:NAME`` and ``out:NAME`` for text alone.
        column, row: position; rows are lanes.
        kind: a key of ``_KINDS``.
    """

    path: str
    column: float
    row: int
    kind: str = "conv"


@dataclass
class Figure:
    """What is drawn of a model: stages in rows, and arrows between them.

    Args:
        model: of the picture.
        inputs: of its forward pass.
        rows: heights of the rows, in pixels.
    """

    model: nn.Module
    inputs: dict[str, Tensor]
    rows: Sequence[int]
    stages: list[Stage] = field(default_factory=list)
    arrows: list[tuple[str, str, str]] = field(default_factory=list)

    def chain(self, row: int, column: float, *paths: str, kinds: str = "") -> None:
        """Add stages from left to right, with arrows; ``kinds`` has a letter for each."""
        names = {kind[0]: kind for kind in _KINDS}
        for n, path in enumerate(paths):
            kind = names[kinds[n]] if kinds else "conv"
            self.stages.append(Stage(path, column + n, row, kind))
        self.arrows += [(a, b, "") for a, b in pairwise(paths)]

    def link(self, first: str, second: str, text: str = "") -> None:
        """Add an arrow between two stages."""
        self.arrows.append((first, second, text))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each stage's output in a forward pass, without the batch."""
        found: dict[str, tuple[int, ...]] = {}

        def keep(path: str):
            def hook(module: nn.Module, args: object, output: object) -> None:
                while isinstance(output, tuple):  # of a ResNet, skips follow; of a node, its output
                    output = output[-1] if isinstance(output[-1], Tensor) else output[0]
                assert isinstance(output, Tensor)
                found[path] = tuple(output.shape[1:])

            return hook

        modules = [s.path for s in self.stages if ":" not in s.path]
        handles = [self.model.get_submodule(p).register_forward_hook(keep(p)) for p in modules]
        with torch.inference_mode():
            self.model.eval()(**self.inputs)
        for handle in handles:
            handle.remove()
        return found


def siamese_lesion() -> Figure:
    """Two encoders, of which the T1 one is used alone after training."""
    images = {"t1": torch.rand(1, 1, 64, 64), "lge": torch.rand(1, 1, 64, 64)}
    figure = Figure(build("siamese_lesion"), images, (130, 130))
    layers = ("conv1", "conv2", "conv3", "conv4", "fc5", "fc6")
    for row, name in enumerate(("t1", "lge")):
        paths = [f"{name}.{layer}" for layer in layers]
        figure.chain(row, 0, f"in:{name.upper()} patch", *paths, kinds="cccccdd")
    figure.chain(0, 7.4, "classifier", "out:lesion or not", kinds="dd")
    figure.link("t1.fc6", "classifier")
    figure.link("lge.fc6", "t1.fc6", "paired by NT-Xent, in training only")
    return figure


def joint_scar() -> Figure:
    """Two TransUNets; the second sees the image inside the myocardium of the first."""
    figure = Figure(build("joint_scar"), {"images": torch.rand(1, 1, 224, 224)}, (150, 150))
    for row, (name, text) in enumerate((("myocardium", "LGE slice"), ("scar", "LGE x mask"))):
        encoder, decoder = f"{name}.encoder", f"{name}.decoder"
        paths = [f"{encoder}.resnet", f"{encoder}.layers", f"{decoder}.first"]
        paths += [f"{decoder}.ups.{n}" for n in range(4)] + [f"{decoder}.head"]
        figure.chain(row, 0, f"in:{text}", *paths, f"out:{name}", kinds="ccacuuuucc")
    figure.link("myocardium.decoder.head", "in:LGE x mask", "mask")
    return figure


def joint_registration() -> Figure:
    """An encoder of both images, the head of the affine transform, and two decoders."""
    shape = (1, 1, 224, 224)
    inputs = {"cine": torch.rand(shape), "lge": torch.rand(shape)}
    figure = Figure(build("joint_registration"), inputs, (150, 150, 150))
    levels = [f"encoder.levels.{n}" for n in range(5)]
    figure.chain(1, 0, "in:cine, LGE", *levels)
    figure.chain(1, 6.4, "head.mix", "head.hidden", "out:affine", kinds="cdd")
    figure.link(levels[-1], "head.mix")
    for row, name, text in ((0, "cine", "cine labels"), (2, "lge", "LGE labels")):
        decoder = [f"{name}.levels.{n}" for n in range(4)]
        figure.chain(row, 6.4, *decoder, f"{name}.head", f"out:{text}", kinds="uuuucc")
        figure.link(levels[-1], decoder[0])
    return figure


def new_lesions() -> Figure:
    """U-Net++ applied to both visits, and a refinement of the two results."""
    shape = (1, 1, 56, 56, 56)
    inputs = {"earlier": torch.rand(shape), "later": torch.rand(shape)}
    figure = Figure(build("new_lesions"), inputs, (96, 88, 80, 72))
    node = "segmentation.nodes.{}{}".format
    figure.stages.append(Stage("in:each visit", 0, 0))
    figure.link("in:each visit", node(0, 0))
    for j in range(4):
        for i in range(4 - j):
            kind = "up" if j else "conv"
            figure.stages.append(Stage(node(i, j), 1 + 1.3 * j + 0.65 * i, i, kind))
            if j:
                figure.link(node(i, j - 1), node(i, j))
                figure.link(node(i + 1, j - 1), node(i, j))
            elif i:
                figure.link(node(i - 1, 0), node(i, 0))
    convs = [f"refinement.convs.{n}" for n in range(4)]
    figure.chain(0, 6.8, *convs, "refinement.out", "out:consensus, 4 raters")
    figure.link(node(0, 3), convs[0], "maps of both visits")
    return figure


def adversarial_transfer() -> Figure:
    """The generator, a residual U-Net, and the discriminator of image and masks."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            model = build("adversarial_transfer")
            self.generator, self.discriminator = model.generator, model.discriminator

        def forward(self, images: Tensor) -> Tensor:
            return self.discriminator(self.generator(images).softmax(1), images)

    figure = Figure(Both(), {"images": torch.rand(1, 1, 224, 224)}, (150, 130))
    down = [f"generator.{name}" for name in ("first", "down2", "down3", "bottom")]
    up = [f"generator.{name}" for name in ("up3", "up2", "last", "head")]
    figure.chain(0, 0, "in:LGE slice", *down, *up, "out:labels", kinds="cccccuuucc")
    levels = [f"discriminator.levels.{n}" for n in range(4)]
    figure.chain(1, 3.5, *levels, "discriminator.head", "out:annotated?", kinds="ccccdd")
    figure.stages.append(Stage("in:slice + labels", 2.3, 1))
    figure.link("in:slice + labels", levels[0])
    figure.link("generator.head", "in:slice + labels", "in training only")
    return figure


FIGURES = {
    f.__name__: f
    for f in (siamese_lesion, joint_scar, joint_registration, new_lesions, adversarial_transfer)
}


def draw(figure: Figure) -> str:
    """The picture, as SVG; text follows the browser's light or dark mode."""
    shapes = figure.shapes()
    tops = [40 + sum(figure.rows[:row]) for row in range(len(figure.rows))]
    width = round(max(s.column for s in figure.stages) * _COLUMN + 2 * _COLUMN)
    height = 40 + sum(figure.rows) + 30
    boxes = {s.path: _box(s, shapes, tops, figure.rows) for s in figure.stages}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="DejaVu Sans, Verdana, sans-serif" '
        f'font-size="{_TEXT}">',
        "<style>text{fill:#333}path{stroke:#888;fill:none}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" style="fill:#888;stroke:none"/>'
        "</marker></defs>",
    ]
    for first, second, text in figure.arrows:
        parts += _arrow(boxes[first], boxes[second], text)
    for stage in figure.stages:
        parts += _drawn(stage, boxes[stage.path], shapes.get(stage.path))
    parts += _legend({s.kind for s in figure.stages if ":" not in s.path}, height - 12)
    return "\n".join([*parts, "</svg>", ""])


Box = tuple[float, float, float, float]  # left, top, width, height


def _box(
    stage: Stage, shapes: dict[str, tuple[int, ...]], tops: Sequence[int], rows: Sequence[int]
) -> Box:
    middle_x, middle_y = 50 + stage.column * _COLUMN, tops[stage.row] + rows[stage.row] / 2 - 16
    if ":" in stage.path:
        width, height = 7.4 * max(map(len, _lines(stage.path))), 14.0 * len(_lines(stage.path))
    else:
        channels, size = _channels_and_size(shapes[stage.path])
        width = 8 + 4.5 * math.log2(max(channels, 2))
        height = 12 + 10 * math.log2(size) if size > 1 else 12 + 5 * math.log2(channels)
        if size == 1:
            width = 12
    return middle_x - width / 2, middle_y - height / 2, width, height


def _channels_and_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Channels and size of an image (C, *S), of tokens (N, C) or of a vector (C,)."""
    if len(shape) == 2:
        return shape[1], round(math.sqrt(shape[0]))
    return shape[0], shape[-1] if len(shape) > 2 else 1


def _lines(path: str) -> list[str]:
    """The text of an input or output, in lines of a few words."""
    words, lines = path.partition(":")[2].split(), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > 10:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _drawn(stage: Stage, box: Box, shape: tuple[int, ...] | None) -> list[str]:
    left, top, width, height = box
    middle = left + width / 2
    if shape is None:
        return [
            f'<text x="{middle:.1f}" y="{top + 11 + 14 * n:.1f}" text-anchor="middle" '
            f'font-weight="bold">{line}</text>'
            for n, line in enumerate(_lines(stage.path))
        ]
    channels, size = _channels_and_size(shape)
    power = {2: "²", 3: "²", 4: "³"}.get(len(shape))
    text = f"{channels} · {size}{power}" if power else f"{channels}"
    colour = _KINDS[stage.kind][0]
    return [
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="3" '
        f'fill="{colour}" fill-opacity="0.85"/>',
        f'<text x="{middle:.1f}" y="{top + height + 13:.1f}" text-anchor="middle">{text}</text>',
    ]


def _arrow(first: Box, second: Box, text: str) -> list[str]:
    """From right edge to left edge, or from top or bottom to the opposite side."""
    x1, y1 = first[0] + first[2], first[1] + first[3] / 2
    x2, y2 = second[0], second[1] + second[3] / 2
    if x2 > x1:
        path = f"M{x1 + 2:.1f} {y1:.1f} L{x2 - 2:.1f} {y2:.1f}"
    elif y1 > y2:  # back up
        x1, x2 = first[0] + first[2] / 2, second[0] + second[2] / 2
        y1, y2 = first[1] - 2, second[1] + second[3] + 18
        path = f"M{x1:.1f} {y1:.1f} L{x2:.1f} {y2:.1f}"
    else:  # down to the start of the next row
        x1, x2 = first[0] + first[2] / 2, second[0] + second[2] / 2
        y1, y2 = first[1] + first[3] + 20, second[1] - 4
        turn = (y1 + y2) / 2
        path = f"M{x1:.1f} {y1:.1f} V{turn:.1f} H{x2:.1f} V{y2:.1f}"
    dashes = ' stroke-dasharray="4 3"' if "training only" in text else ""
    parts = [f'<path d="{path}" marker-end="url(#head)"{dashes}/>']
    if text:
        x, y = (x1 + x2) / 2, (y1 + y2) / 2 - 5
        straight = x1 == x2
        anchor = "start" if straight else "middle"
        parts.append(
            f'<text x="{x + 6 * straight:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
            f'font-style="italic">{text}</text>'
        )
    return parts


def _legend(kinds: set[str], y: float) -> list[str]:
    parts, x = [], 12.0
    for kind, (colour, text) in _KINDS.items():
        if kind in kinds:
            parts.append(
                f'<rect x="{x}" y="{y - 10}" width="12" height="12" rx="2" fill="{colour}"/>'
                f'<text x="{x + 18}" y="{y}">{text}</text>'
            )
            x += 40 + 6.6 * len(text)
    return parts


def main() -> None:
    """Write all pictures."""
    for name, make in FIGURES.items():
        path = IMAGES / f"network_{name}.svg"
        path.write_text(draw(make()), "utf-8")
        print(path)


if __name__ == "__main__":
    main()

"""The packages of cmrfast and their imports as a picture, drawn from the source.

Run it with ``python docs/make_architecture.py``, which writes ``docs/images/architecture.svg``; a
test fails where the picture is out of date or where an import points back.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "architecture.svg"

#: From bottom to top. A package imports from lower layers only, and never from its own layer.
LAYERS: tuple[dict[str, str], ...] = (
    {
        "errors": "exceptions",
        "atomic": "files written whole or not at all",
        "files": "opened, hashed, read by type",
        "printable": "text for a terminal",
    },
    {"ops": "fast functions of tensors"},
    {"losses": "of segmentation", "metrics": "scores of masks, classes, lesions"},
    {"models": "networks and their losses: tensors only"},
    {"data": "volumes, NIfTI, data sets, augmentation"},
    {
        "infer": "sliding windows, batches",
        "viz": "overlays",
        "export": "ONNX",
        "info": "versions, backends",
    },
    {"methods": "one record and one folder per paper"},
    {"train": "options, plan, trainer, checkpoints"},
    {"runs": "predict, evaluate, report, view"},
    {"cli": "the command", "compat": "drop-ins for MONAI, nnU-Net, Lightning"},
)
#: What every package may import; drawn as boxes without arrows.
FOUNDATION = tuple(LAYERS[0])
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}


class Import(NamedTuple):
    """One module importing another, by their full names."""

    importer: str
    line: int
    imported: str


def find_imports(package: Path) -> list[Import]:
    """All imports inside a package, also those in functions and under TYPE_CHECKING."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts).removesuffix(".__init__")] = path
    found = []
    for name, path in modules.items():
        home = name if path.stem == "__init__" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for target in _targets(node, home):
                while target and target not in modules:  # a class or a function of the module
                    target = target.rpartition(".")[0]
                if target and target != name:
                    found.append(Import(name, node.lineno, target))
    return sorted(set(found))


def _targets(node: ast.AST, home: str) -> Iterator[str]:
    """Full names that a statement or a call imports; ``home`` is the package of the module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = home.rsplit(".", node.level - 1)[0] if node.level else ""
        base = ".".join(part for part in (base, node.module) if part)
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        yield from (str(word.value) for word in node.args[:1] if isinstance(word, ast.Constant))


def package_of(module: str) -> str | None:
    """The package below cmrfast that holds a module; None for ``cmrfast`` itself."""
    parts = module.split(".")
    if len(parts) == 1:
        return None
    return "cli" if parts[1] == "__main__" else parts[1]


def find_arrows(imports: Iterable[Import]) -> dict[tuple[str, str], Import]:
    """(importing package, imported package) → the first import that makes the arrow."""
    arrows: dict[tuple[str, str], Import] = {}
    for found in imports:
        ends = package_of(found.importer), package_of(found.imported)
        if ends[0] and ends[1] and ends[0] != ends[1]:
            arrows.setdefault((ends[0], ends[1]), found)
    return arrows


def find_faults(imports: list[Import]) -> list[str]:
    """Packages without a layer, arrows that do not point down, modules that import each other."""
    packages = {package_of(name) for found in imports for name in (found.importer, found.imported)}
    new = sorted(name for name in packages if name and name not in LEVEL)
    faults = [f"{name} has no layer in {Path(__file__).name}" for name in new]
    for (above, below), found in find_arrows(imports).items():
        if above in LEVEL and below in LEVEL and LEVEL[below] >= LEVEL[above]:
            where = "in the layer of" if LEVEL[below] == LEVEL[above] else "above"
            faults.append(
                f"{found.importer}, line {found.line}, imports {found.imported}: "
                f"{below} is {where} {above}"
            )
    return faults + [" imports ".join(cycle) for cycle in find_cycles(imports)]


def find_cycles(imports: Iterable[Import]) -> list[list[str]]:
    """Chains of modules that import each other, each with its first module again at its end."""
    graph: dict[str, list[str]] = {}
    for importer, _, imported in imports:
        graph.setdefault(importer, []).append(imported)
    done: set[str] = set()
    cycles: list[list[str]] = []

    def visit(module: str, chain: list[str]) -> None:
        if module in chain:
            cycles.append([*chain[chain.index(module) :], module])
        elif module not in done:
            for imported in graph.get(module, []):
                visit(imported, [*chain, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return cycles


# The picture: one box per package, the upper layers on top. Each importing package has a lane of
# its own colour right of the boxes; the lane runs down and turns into every box that it imports.
_LEFT, _WIDTH, _GAP, _LANE, _PORT = 24, 430, 10, 22, 11  # pixels
_COLOURS = {
    "cli": "#444444",
    "compat": "#5b7f1f",
    "runs": "#b0413e",
    "train": "#d98200",
    "methods": "#2a7f3f",
    "infer": "#1f77b4",
    "viz": "#8c6d1f",
    "info": "#7f7f7f",
    "data": "#7b4fa6",
    "models": "#c23b83",
    "losses": "#008b8b",
}
_FONT = "DejaVu Sans, Verdana, Helvetica, sans-serif"


def draw(imports: list[Import]) -> str:
    """The picture, as SVG."""
    arrows = sorted(
        (above, below) for above, below in find_arrows(imports) if below not in FOUNDATION
    )
    importers = {name: [a for a, b in arrows if b == name] for name in LEVEL}
    boxes, bands, bottom = _place(importers)
    drawn = [name for layer in reversed(LAYERS) for name in layer]
    with_lane = [name for name in drawn if any(above == name for above, _ in arrows)]
    right = _LEFT + _WIDTH
    # The upper packages have the outer lanes, so that lines to lower boxes cross the fewest lanes.
    lane = {name: right + 26 + _LANE * i for i, name in enumerate(reversed(with_lane))}
    width = right + 26 + _LANE * len(with_lane) + 8

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom}" width="{width}" '
        f'height="{bottom}" font-family="{_FONT}">',
        "<title>Packages of cmrfast; an arrow points from a package to one it imports</title>",
        f'<rect width="{width}" height="{bottom}" fill="#ffffff"/>',
    ]
    for top, height in bands:
        parts.append(
            f'<rect x="8" y="{top}" width="{_WIDTH + 32}" height="{height}" rx="8" fill="#eef2f6"/>'
        )
    for name in with_lane:
        parts += _lines(name, [b for a, b in arrows if a == name], boxes, lane[name], importers)
    for name in drawn:
        top, height = boxes[name]
        colour = _COLOURS.get(name, "#666666")
        text = next(layer[name] for layer in LAYERS if name in layer)
        middle = top + height // 2 + 5
        parts += [
            f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{height}" rx="5" '
            f'fill="#ffffff" stroke="{colour}" stroke-width="1.5"/>',
            f'<text x="{_LEFT + 14}" y="{middle}" font-size="15" font-weight="bold" '
            f'fill="{colour}">{name}</text>',
            f'<text x="{_LEFT + 104}" y="{middle}" font-size="13" fill="#333333">{text}</text>',
        ]
    parts.append(
        f'<text x="{_LEFT}" y="{bottom - 12}" font-size="12" fill="#555555">'
        "An arrow points from a package to one it imports. "
        f"Any package may import {' and '.join(FOUNDATION)}.</text>"
    )
    return "\n".join([*parts, "</svg>", ""])


def _place(
    importers: dict[str, list[str]],
) -> tuple[dict[str, tuple[int, int]], list[tuple[int, int]], int]:
    """Top and height of every box, the same of every layer, and the height of the picture."""
    boxes, bands, y = {}, [], 8
    for layer in reversed(LAYERS):
        top = y
        y += 7
        for name in layer:
            height = max(34, _PORT * (len(importers[name]) + 2))
            boxes[name] = y, height
            y += height + 7
        bands.append((top, y - top))
        y += _GAP
    return boxes, bands, y + 24


def _lines(
    name: str,
    imported: list[str],
    boxes: dict[str, tuple[int, int]],
    x: int,
    importers: dict[str, list[str]],
) -> Iterator[str]:
    """The lane of a package: out of its box at the lower edge, then into each imported box."""
    right, colour = _LEFT + _WIDTH, _COLOURS.get(name, "#666666")
    top, height = boxes[name]
    start = top + height - 8
    paths, heads = [], []
    for target in imported:
        order = sorted(importers[target], key=lambda above: -LEVEL[above])
        y = boxes[target][0] + _PORT + _PORT * order.index(name)
        paths.append(
            f"M{right} {start} H{x - 6} Q{x} {start} {x} {start + 6} "
            f"V{y - 6} Q{x} {y} {x - 6} {y} H{right + 8}"
        )
        heads.append(f'<path d="M{right + 1} {y} l9 -4.5 v9 z" fill="{colour}"/>')
    for stroke, wide in (("#ffffff", 4.5), (colour, 1.8)):  # white where lanes cross
        for path in paths:
            yield f'<path d="{path}" fill="none" stroke="{stroke}" stroke-width="{wide}"/>'
    yield from heads


def main() -> None:
    """Write the picture, unless an import is at fault."""
    imports = find_imports(ROOT / "cmrfast")
    if faults := find_faults(imports):
        sys.exit("\n".join(faults))
    PICTURE.write_text(draw(imports), "utf-8")
    print(PICTURE)


if __name__ == "__main__":
    main()

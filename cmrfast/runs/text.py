"""Tables as plain text, and the numbers in them."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

_UNITS = {"percent": "%", "mm": "mm", "mm3": "mm³", "ml": "ml", "p": "p"}
_WORDS = {
    **{name: name.upper() for name in ("asd", "assd", "f1", "hd95", "lge", "lv", "rv")},
    **{"cd": "centre distance", "dice": "Dice", "hausdorff": "Hausdorff", "jaccard": "Jaccard"},
}


def format_numbers(values: Sequence[float]) -> list[str]:
    """Numbers that are compared, with as many decimals each; NaN is a dash.

    Example:
        >>> format_numbers([9.588, 0.5652, float("nan")])
        ['9.59', '0.57', '-']
    """
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    places = 3 if largest <= 1 else 2 if largest < 10 else 1
    return ["-" if math.isnan(value) else _number(value, places) for value in values]


def _number(value: float, places: int) -> str:
    """A number that is not zero does not become it."""
    return f"{value:.0e}" if 0 < abs(value) < 0.5 * 10**-places else f"{value:.{places}f}"


def finite_or_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values for JSON, which has no NaN and no infinity.

    Example:
        >>> finite_or_none({"case": "p1", "dice": float("nan")})
        {'case': 'p1', 'dice': None}
    """
    infinite = [n for n, x in values.items() if isinstance(x, float) and not math.isfinite(x)]
    return {**values, **dict.fromkeys(infinite)}


def in_one_line(error: Exception) -> str:
    """What is wrong; the name of the error if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def in_words(score: str) -> str:
    """The name of a score as a head of a column.

    Example:
        >>> in_words("lv_dice_percent"), in_words("myocardium_asd_mm"), in_words("scar_recall")
        ('LV Dice (%)', 'myocardium ASD (mm)', 'scar recall')
    """
    *words, last = score.split("_")
    if words and last in _UNITS:
        last = f"({_UNITS[last]})"
    return " ".join(_WORDS.get(word, word) for word in [*words, last])


def unit_of(score: str) -> str:
    """The unit at the end of a score's name; empty without one, such as of numbers from 0 to 1.

    Example:
        >>> unit_of("lv_dice_percent"), unit_of("scar_dice")
        ('%', '')
    """
    return _UNITS.get(score.rpartition("_")[2], "")


def wrap(line: str) -> str:
    """A sentence in lines that fit a terminal, all but the first indented."""
    return textwrap.fill(line, 88, subsequent_indent="  ", break_long_words=False)


def align_columns(
    lines: Sequence[Sequence[str]], *, right: bool = False, heads: int | None = None
) -> str:
    """Cells in columns, as plain text.

    Args:
        lines: of cells, the heads first.
        right: set cells to the right of their column.
        heads: break the heads of columns between words where they are wider than this and than
            their column.
    """
    lines = [list(line) for line in lines]
    if heads is not None:
        body = [max(len(line[c]) for line in lines[1:]) for c in range(len(lines[0]))]
        broken = [
            textwrap.wrap(head, max(heads, width), break_long_words=False)
            for head, width in zip(lines[0], body, strict=True)
        ]
        deep = max(map(len, broken))
        over = [[""] * (deep - len(parts)) + parts for parts in broken]
        lines[:1] = [list(line) for line in zip(*over, strict=True)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )

"""Tables as plain text."""

import textwrap
from collections.abc import Sequence


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

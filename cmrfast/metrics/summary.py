"""Tables as the papers print them: mean (SD), with stars against a baseline."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cmrfast.metrics.paired import paired_t_test

Values = Tensor | Sequence[float]


class Summary(NamedTuple):
    """What a table prints of a column of cases; NaN cases are left out and counted."""

    mean: float
    sd: float
    median: float
    cases: int
    excluded: int


def summarise(values: Values) -> Summary:
    """Mean, sample standard deviation and median of cases.

    Args:
        values: (N,); NaN marks a case without a value.

    Example:
        >>> summarise([1.0, 2.0, 6.0, float("nan")]).mean
        3.0
    """
    everything = torch.as_tensor(values, dtype=torch.float64).flatten().cpu()
    kept = everything[~everything.isnan()]
    n = len(kept)
    return Summary(
        mean=kept.mean().item() if n else math.nan,
        sd=kept.std().item() if n > 1 else math.nan,
        median=kept.quantile(0.5).item() if n else math.nan,
        cases=n,
        excluded=len(everything) - n,
    )


def table(
    rows: Mapping[str, Mapping[str, Values]],
    *,
    title: str = "",
    baseline: str | None = None,
    digits: int = 2,
) -> str:
    """Rows of methods, columns of metrics: mean (SD), as plain text.

    Args:
        rows: {method: {metric: values of the cases}}; a missing metric prints a dash.
        title: over the methods' names; the unit, say.
        baseline: a row; the others get * for p < .05 and ** for p < .005 of a paired t-test
            against it, on cases in the same order.
        digits: after the decimal point.

    Returns:
        Lines without a newline at the end; below, what the stars mean and how many cases each
        cell leaves out, if any.

    Example:
        >>> print(table({"before": {"CD": [3.0, 4.0, 6.0, 5.0]}, "after": {"CD": [1, 2, 3, 3]}},
        ...             title="mm", baseline="before"))
        mm      CD
        before  4.50 (1.29)
        after   2.25 (0.96)**
        * p < .05, ** p < .005, paired t-test against before
    """
    if baseline is not None and baseline not in rows:
        raise ValueError(f"table: baseline must be one of {', '.join(rows)}; got {baseline!r}")
    metrics = list(dict.fromkeys(metric for cells in rows.values() for metric in cells))
    lines, notes = [[title, *metrics]], []
    for name, cells in rows.items():
        line = [name]
        for metric in metrics:
            if metric not in cells:
                line.append("-")
                continue
            summary = summarise(cells[metric])
            sd = "-" if math.isnan(summary.sd) else f"{summary.sd:.{digits}f}"
            cell = f"{summary.mean:.{digits}f} ({sd})" if summary.cases else "-"
            if baseline not in (None, name) and metric in rows[baseline]:
                cell += _stars(paired_t_test(rows[baseline][metric], cells[metric]).p)
            line.append(cell)
            if summary.excluded:
                of = summary.cases + summary.excluded
                notes.append(f"{name}, {metric}: {summary.excluded} of {of} cases have no value")
        lines.append(line)
    text = [aligned(lines)]
    if baseline is not None:
        notes.insert(0, f"* p < .05, ** p < .005, paired t-test against {baseline}")
    return "\n".join([*text, *notes])


def aligned(
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


def _stars(p: float) -> str:
    return "**" if p < 0.005 else "*" if p < 0.05 else ""
